//! Generates the messages for the library, and the services for its tests, without protoc.

use std::{env, error::Error, path::PathBuf};

use tonic_prost_build::configure;

fn main() -> Result<(), Box<dyn Error>> {
    let proto = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", proto.join("asset/v1").display());
    let files = protox::compile(["asset/v1/asset.proto", "asset/v1/deploy.proto"], [&proto])?;

    let out = PathBuf::from(env::var("OUT_DIR")?);
    // The client code that could be generated has its paths built in, and there are two.
    let messages = out.join("messages");
    std::fs::create_dir_all(&messages)?;
    configure()
        .build_client(false)
        .build_server(false)
        .out_dir(&messages)
        .compile_fds(files.clone())?;

    let services = out.join("services");
    std::fs::create_dir_all(&services)?;
    configure()
        .build_client(false)
        .build_server(true)
        .extern_path(".asset.v1", "crate::proto")
        .out_dir(&services)
        .compile_fds(files)?;
    Ok(())
}
