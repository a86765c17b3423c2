//! Registers a file with assetmanagerd.
//!
//! ```text
//! cargo run -p assetclient --example register -- http://127.0.0.1:8083 acme build-1 acme/build-1.ext4 1048576 SHA256
//! ```

use std::env;

use anyhow::Context as _;
use assetclient::{AssetClient, Config, FinishedImage, RegisterAsset};

#[expect(clippy::print_stdout, reason = "a program's output")]
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [endpoint, tenant_id, build_id, location, size_bytes, checksum] = &arguments[..] else {
        anyhow::bail!("usage: register ENDPOINT TENANT BUILD LOCATION SIZE SHA256");
    };
    let client = AssetClient::connect_lazy(Config::new(endpoint))?;
    let asset = RegisterAsset::of_image(FinishedImage {
        tenant_id: tenant_id.clone(),
        build_id: build_id.clone(),
        location: location.clone(),
        size_bytes: size_bytes.parse().context("SIZE is a number of bytes")?,
        checksum: checksum.clone(),
        ..FinishedImage::default()
    });
    println!("{}", client.register(&asset).await?);
    Ok(())
}
