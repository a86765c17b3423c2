//! Generates what the fake assetmanagerd and the fake SPIFFE agent speak, without protoc.

use std::{env, error::Error, fs, path::PathBuf};

use tonic_prost_build::configure;

fn main() -> Result<(), Box<dyn Error>> {
    let proto = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", proto.join("asset/v1").display());
    let files = protox::compile(["asset/v1/asset.proto", "asset/v1/deploy.proto"], [&proto])?;

    // The second name of the service uses the first one's messages, so the two are generated apart.
    let out = PathBuf::from(env::var("OUT_DIR")?);
    configure()
        .build_client(false)
        .build_transport(false)
        .out_dir(&out)
        .compile_fds(files.clone())?;
    let second = out.join("second");
    fs::create_dir_all(&second)?;
    configure()
        .build_client(false)
        .build_transport(false)
        .extern_path(".asset.v1", "crate::assetmanagerd::proto")
        .out_dir(&second)
        .compile_fds(files)?;

    let own = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("proto");
    println!("cargo::rerun-if-changed={}", own.display());
    configure()
        .build_client(false)
        .build_transport(false)
        .out_dir(&out)
        .compile_fds(protox::compile(["workload.proto"], [&own])?)?;
    Ok(())
}
