//! A small image in which layers do to one another what layers do, around one program that tells what it finds.

use test_support::image::{BuiltImage, Compression, Image, Layer};

/// `cap_net_raw`, bit 13 (`capabilities(7)`).
const CAP_NET_RAW: u64 = 1 << 13;

/// What the guest prints when everything that the layers say has survived.
pub const EXPECTED: [&str; 6] = [
    "hello from the guest",
    "env DEMO=\"layers\"",
    "cwd /srv",
    "file /etc/removed absent",
    "permitted=0x2000 inheritable=0x0 effective=1",
    "guest-init: command exited with code 0",
];

/// The image: `guest_hello` is the static program that it runs.
#[must_use]
pub fn demo_image(guest_hello: &[u8]) -> BuiltImage {
    let base = Layer::new()
        .directory("dev", 0o755)
        .directory("proc", 0o555)
        .directory("sys", 0o555)
        .directory("tmp", 0o1777)
        .directory("etc", 0o755)
        .file(
            "etc/passwd",
            "root:x:0:0:root:/:/bin/hello\nguest:x:1000:1000:guest:/srv:/bin/hello\n",
        )
        .file("etc/group", "root:x:0:\nguest:x:1000:\n")
        .file("etc/removed", "a higher layer takes this away\n")
        .directory("usr/bin", 0o755)
        .file("usr/bin/hello", guest_hello)
        .mode(0o755);
    let links = Layer::new()
        .whiteout("etc/removed")
        .symlink("bin", "usr/bin")
        .file("srv/text", "two names, one file\n")
        .hard_link("srv/again", "srv/text");
    let capability = Layer::new()
        .file("usr/bin/raw-socket", guest_hello)
        .mode(0o755)
        .file_capability(CAP_NET_RAW);
    Image::new()
        .layer(&base)
        .layer_as(&links, Compression::Zstd)
        .layer(&capability)
        .env(&["PATH=/usr/bin", "DEMO=layers"])
        .user("guest")
        .working_dir("/srv")
        .entrypoint(&["/bin/hello"])
        .cmd(&[
            "/etc/removed",
            "/bin",
            "/srv/text",
            "/srv/again",
            "/usr/bin/raw-socket",
        ])
        .build()
}
