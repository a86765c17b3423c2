//! Uploads a file to assetmanagerd, and looks at what it made of it.
//!
//! ```text
//! cargo run -p assetclient --example upload -- http://127.0.0.1:8083 acme build-1 ./rootfs.ext4 SHA256
//! ```

use std::env;

use assetclient::{AssetClient, Config, FinishedImage, Owner, RegisterAsset};

#[expect(clippy::print_stdout, reason = "a program's output")]
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [endpoint, tenant_id, build_id, path, checksum] = &arguments[..] else {
        anyhow::bail!("usage: upload ENDPOINT TENANT BUILD FILE SHA256");
    };
    let client = AssetClient::connect_lazy(Config::new(endpoint))?;
    let content = tokio::fs::File::open(path).await?;
    let asset = RegisterAsset::of_image(FinishedImage {
        tenant_id: tenant_id.clone(),
        build_id: build_id.clone(),
        size_bytes: content.metadata().await?.len(),
        checksum: checksum.clone(),
        // With an id of ours, a lost answer can be looked for.
        suggested_id: build_id.clone(),
        ..FinishedImage::default()
    });
    let id = client.upload(&asset, content).await?;
    let owner = Owner {
        tenant_id: tenant_id.clone(),
        customer_id: String::new(),
    };
    println!("{:?}", client.find(&owner, id.as_str()).await?);
    Ok(())
}
