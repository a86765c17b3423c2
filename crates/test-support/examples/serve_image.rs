//! Publishes an image on loopback until Enter is pressed, then shows who asked for what.
//!
//! ```text
//! cargo run -p test-support --example serve_image
//! ```

#![expect(clippy::print_stdout, reason = "an example talks to its terminal")]

use std::io;

use test_support::{
    image::{Compression, Image, Layer},
    registry::Registry,
};

fn main() -> io::Result<()> {
    let base = Layer::new()
        .directory("etc", 0o755)
        .file("etc/motd", "hello\n")
        .file("etc/old", "gone soon\n");
    let top = Layer::new()
        .whiteout("etc/old")
        .hard_link("etc/issue", "etc/motd");
    let image = Image::new()
        .layer(&base)
        .layer_as(&top, Compression::Zstd)
        .cmd(&["/bin/sh"])
        .build();

    let registry = Registry::start()?;
    println!(
        "{} until Enter is pressed",
        registry.publish("example/app", "1", &image)
    );
    io::stdin().read_line(&mut String::new())?;
    for request in registry.requests() {
        println!("{} {} {}", request.status, request.method, request.path);
    }
    Ok(())
}
