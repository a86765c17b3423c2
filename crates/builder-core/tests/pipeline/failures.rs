//! What goes wrong, in words that tell why.

use builder_core::{BuildErrorKind, request::RegistryCredentials, request::Secret};
use test_support::{
    image::Compression, image::Fault, image::Format, image::Image, image::Layer, registry::Authentication,
    registry::Misbehaviour, registry::Registry,
};

use crate::common::{PATIENCE, Site, host_architecture, noise, request, sample};

#[tokio::test(flavor = "multi_thread")]
async fn bad_images_fail_with_a_word_that_tells_why() {
    let plain = || {
        Layer::new()
            .directory("etc", 0o755)
            .file("etc/motd", noise(50_000, 2))
    };
    let image = || {
        Image::new()
            .layer(&plain())
            .platform("linux", &host_architecture(), "")
    };
    let broken = |fault| image().fault(0, fault).build();
    let cases = [
        (
            "digest",
            broken(Fault::WrongDigest),
            BuildErrorKind::DigestMismatch,
        ),
        (
            "diff_id",
            broken(Fault::WrongDiffId),
            BuildErrorKind::DigestMismatch,
        ),
        (
            "truncated",
            broken(Fault::TruncatedStream),
            BuildErrorKind::CorruptLayer,
        ),
        (
            "corrupt gzip",
            broken(Fault::CorruptStream),
            BuildErrorKind::CorruptLayer,
        ),
        (
            "missing blob",
            broken(Fault::MissingBlob),
            BuildErrorKind::ImageNotFound,
        ),
        (
            "schema 1",
            image().format(Format::DockerSchema1).build(),
            BuildErrorKind::UnsupportedImage,
        ),
        (
            "no archive",
            Image::new()
                .layer_bytes(b"this is no tar archive".repeat(100), Compression::Gzip)
                .platform("linux", &host_architecture(), "")
                .build(),
            BuildErrorKind::CorruptLayer,
        ),
        (
            "a link to nothing",
            Image::new()
                .layer(&Layer::new().hard_link("a", "absent"))
                .platform("linux", &host_architecture(), "")
                .build(),
            BuildErrorKind::CorruptLayer,
        ),
        (
            "the init's place is a directory",
            Image::new()
                .layer(&Layer::new().directory("container.cmd", 0o755))
                .platform("linux", &host_architecture(), "")
                .build(),
            BuildErrorKind::UnsupportedImage,
        ),
    ];
    for (case, image, kind) in cases {
        let site = Site::new();
        let registry = Registry::start().unwrap();
        let reference = registry.publish("team/app", "1", &image);
        let ended = site.build(&request(&reference), "x.ext4").await;
        let error = ended.error();
        assert_eq!(error.kind(), &kind, "{case}: {error} {error:?}");
        assert!(
            !error
                .to_string()
                .contains(&*site.directory.path().to_string_lossy()),
            "{case}: {error}"
        );
        site.assert_clean(case);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_registries_fail_with_a_word_that_tells_why() {
    type Misbehave = fn(&Registry);
    let cases: [(&str, &str, Misbehave, BuildErrorKind); 6] = [
        ("unknown tag", "2", |_| (), BuildErrorKind::ImageNotFound),
        (
            "wants credentials",
            "1",
            |registry| registry.misbehave("/manifests/", Misbehaviour::status(401)),
            BuildErrorKind::Unauthorized,
        ),
        (
            "refuses",
            "1",
            |registry| registry.misbehave("/manifests/", Misbehaviour::status(403)),
            BuildErrorKind::Unauthorized,
        ),
        (
            "asks to come back",
            "1",
            |registry| registry.misbehave("/", Misbehaviour::rate_limited(3600)),
            BuildErrorKind::RateLimited,
        ),
        (
            "is ill",
            "1",
            |registry| registry.misbehave("/", Misbehaviour::status(503)),
            BuildErrorKind::RegistryUnreachable,
        ),
        (
            "flips a bit on the way",
            "1",
            |registry| registry.misbehave("/blobs/", Misbehaviour::FlipBit),
            BuildErrorKind::DigestMismatch,
        ),
    ];
    for (case, tag, misbehave, kind) in cases {
        let site = Site::new();
        let registry = Registry::start().unwrap();
        registry.publish("team/app", "1", &sample().build());
        misbehave(&registry);
        let ended = site
            .build(&request(&registry.reference("team/app", tag)), "x.ext4")
            .await;
        assert_eq!(ended.error().kind(), &kind, "{case}: {}", ended.error());
        site.assert_clean(case);
    }

    let site = Site::new();
    let gone = Registry::start().unwrap().reference("team/app", "1");
    let ended = site.build(&request(&gone), "x.ext4").await;
    assert_eq!(
        ended.error().kind(),
        &BuildErrorKind::RegistryUnreachable,
        "{}",
        ended.error()
    );
    site.assert_clean("nobody listens");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_open_a_private_image_and_show_nowhere() {
    let registry = Registry::start_with(Authentication::basic("robot", "hunter2")).unwrap();
    let reference = registry.publish("team/app", "1", &sample().build());
    let site = Site::new();
    let mut request = request(&reference);
    let ended = site.build(&request, "x.ext4").await;
    assert_eq!(ended.error().kind(), &BuildErrorKind::Unauthorized);

    let credentials = |password: &str, registry: &str| {
        Some(RegistryCredentials {
            username: "robot".to_owned(),
            password: Secret::new(password.to_owned()),
            token: Secret::default(),
            registry: registry.to_owned(),
        })
    };
    request.source.credentials = credentials("wrong-hunter2", "");
    let ended = site.build(&request, "x.ext4").await;
    assert_eq!(ended.error().kind(), &BuildErrorKind::Unauthorized);
    assert!(!format!("{:?} {:?}", ended.error(), ended.events).contains("hunter2"));

    request.source.credentials = credentials("hunter2", "elsewhere.example");
    let ended = site.build(&request, "x.ext4").await;
    assert_eq!(
        ended.error().kind(),
        &BuildErrorKind::InvalidArgument {
            field: "docker_image.auth.registry"
        }
    );

    request.source.credentials = credentials("hunter2", &registry.host());
    let ended = site.build(&request, "x.ext4").await;
    ended.outcome();
    assert!(!format!("{:?}", ended.events).contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_are_broken_or_hostile_end_the_build_and_nothing_else() {
    for (mode, word) in [
        ("garbage", "answered with garbage"),
        ("endless-line", "answered with garbage"),
        ("chatter", "answered with garbage"),
        ("liar", "answered with garbage"),
        ("silent", "without a result"),
        ("panic", "ended with code 101"),
        ("abort", "signal 6"),
        ("no such mode", "ended with code 1"),
    ] {
        let site = Site::with_worker(mode);
        let layout = site.directory.path().join("layout");
        sample().build().write_oci_layout(&layout, "1").unwrap();
        let request = request(&format!("oci:{}:1", layout.display()));
        let build = site.build(&request, "x.ext4");
        let ended = tokio::time::timeout(PATIENCE, build).await.expect(mode);
        let error = ended.error();
        assert_eq!(error.kind(), &BuildErrorKind::Internal, "{mode}: {error}");
        assert!(error.to_string().contains(word), "{mode}: {error}");
        site.assert_clean(mode);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_floods_its_standard_error_is_ended() {
    let site = Site::with_worker("loud");
    let layout = site.directory.path().join("layout");
    sample().build().write_oci_layout(&layout, "1").unwrap();
    let request = request(&format!("oci:{}:1", layout.display()));
    let ended = tokio::time::timeout(PATIENCE, site.build(&request, "x.ext4"))
        .await
        .expect("it would write for ever");
    let error = ended.error();
    assert_eq!(error.kind(), &BuildErrorKind::LimitExceeded, "{error}");
    assert!(
        error.to_string().contains("writes more to its log than it may"),
        "{error}"
    );
    // Not a word of it reaches the tenant.
    assert!(!format!("{:?}", ended.events).contains("xxxx"));
    site.assert_clean("loud");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_that_cannot_be_written_fails_before_the_first_request() {
    let site = Site::new();
    let registry = Registry::start().unwrap();
    let reference = registry.publish("team/app", "1", &sample().build());
    let ended = site.build(&request(&reference), "no/such/directory.ext4").await;
    assert_eq!(ended.error().kind(), &BuildErrorKind::OutputNotWritable);
    assert!(registry.requests().is_empty());
}
