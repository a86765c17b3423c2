use super::*;
use crate::request::Optimization;

fn config() -> ImageConfig {
    let mut config = ImageConfig::default();
    config.entrypoint = words(&["/entry"]);
    config.cmd = words(&["serve", "--all"]);
    config.env = words(&["PATH=/bin", "A=1", "A=2", "BROKEN", "=x", "EQ=a=b"]);
    config.exposed_ports = words(&["80/tcp"]);
    config.working_dir = "srv".to_owned();
    config.stop_signal = Some("SIGQUIT".to_owned());
    config
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn target() -> RootfsTarget {
    RootfsTarget {
        init: InitStrategy::Tini,
        runtime: RuntimeOverrides::default(),
        profile: Profile::ReadWrite,
        free_space_bytes: 1,
        free_inodes: 2,
        layer_mode: LayerMode::Oci,
        optimization: Optimization::default(),
        preserve_paths: Vec::new(),
        verity: true,
    }
}

#[test]
fn command_lines_follow_dockers_rules() {
    for (name, entrypoint, command, expected) in [
        ("image's own", &[][..], &[][..], &["/entry", "serve", "--all"][..]),
        ("new command", &[], &["check"], &["/entry", "check"]),
        ("new entrypoint drops the command", &["/other"], &[], &["/other"]),
        ("both", &["/other"], &["x"], &["/other", "x"]),
        ("no entrypoint, by an empty word", &[""], &["x", "y"], &["x", "y"]),
        ("an empty word drops the command, too", &[""], &[], &[]),
    ] {
        let overrides = RuntimeOverrides {
            entrypoint: words(entrypoint),
            command: words(command),
            ..RuntimeOverrides::default()
        };
        let (entrypoint, command) = command_line(&config(), &overrides);
        assert_eq!([entrypoint, command].concat(), words(expected), "{name}");
    }
}

#[test]
fn an_empty_entrypoint_of_the_image_is_none() {
    let mut config = config();
    config.entrypoint = words(&[""]);
    let (entrypoint, command) = command_line(&config, &RuntimeOverrides::default());
    assert!(entrypoint.is_empty());
    assert_eq!(command, words(&["serve", "--all"]));
}

#[test]
fn what_no_kernel_starts_is_refused_before_anything_is_made() {
    // 131,072 bytes with the name, the sign and the zero.
    let longest = MAX_ARG_STRLEN - "LONG=".len() - 1;
    for (name, command, variable, expected) in [
        ("as long as it gets", "/bin/sh", longest, None),
        (
            "a variable that is longer",
            "/bin/sh",
            longest + 1,
            Some("the variable \"LONG\""),
        ),
        ("no program", "", 1, Some("begins with an empty word")),
    ] {
        let metadata = ImageMetadata {
            command: vec![command.to_owned(), "x".to_owned()],
            env: BTreeMap::from([("LONG".to_owned(), "x".repeat(variable))]),
            ..ImageMetadata::default()
        };
        match (refuse_unstartable(&metadata), expected) {
            (Ok(()), None) => {}
            (Err(error), Some(text)) => assert!(error.to_string().contains(text), "{name}: {error}"),
            (result, _) => panic!("{name}: {result:?}"),
        }
    }
    let metadata = ImageMetadata {
        command: vec!["/bin/sh".to_owned(), "x".repeat(MAX_ARG_STRLEN)],
        ..ImageMetadata::default()
    };
    assert!(refuse_unstartable(&metadata).is_err());
}

#[test]
fn the_guest_finds_command_environment_and_directory() {
    let mut target = target();
    target.runtime.environment = BTreeMap::from([("A".to_owned(), "3".to_owned())]);
    target.runtime.exposed_ports = words(&["443/tcp", "80/tcp"]);
    let metadata = metadata(&config(), &target).unwrap();
    let files = added_files(&metadata, InitStrategy::Tini, Some(&Arc::from(&b"init"[..])));
    let text = |path: &str| match &files.iter().find(|file| file.path == path).unwrap().content {
        AddedContent::Text(text) => text.clone(),
        AddedContent::Binary(_) => panic!("{path} is text"),
    };
    assert_eq!(text("/container.cmd"), r#"["/entry","serve","--all"]"#);
    assert_eq!(
        text("/container.env"),
        r#"{"working_dir":"/srv","env":{"A":"3","EQ":"a=b","PATH":"/bin"},"user":"","exposed_ports":["443/tcp","80/tcp"],"stop_signal":"SIGQUIT"}"#
    );
    assert_eq!(files[0].path, "/usr/bin/metald-init");
    assert_eq!((files[0].mode, files[0].content.bytes()), (0o755, &b"init"[..]));
    assert_eq!(metadata.working_dir, "srv", "metadata says what the image says");
}

#[test]
fn an_image_that_says_nothing_gets_a_shell_and_a_path() {
    let metadata = metadata(&ImageConfig::default(), &target()).unwrap();
    let files = added_files(&metadata, InitStrategy::Tini, Some(&Arc::from(&b""[..])));
    assert_eq!(files[1].content, AddedContent::Text(r#"["/bin/sh"]"#.to_owned()));
    assert_eq!(
        files[2].content,
        AddedContent::Text(format!(
            r#"{{"working_dir":"/","env":{{"PATH":"{DEFAULT_PATH}"}},"user":"","exposed_ports":[]}}"#
        ))
    );
}

#[test]
fn kernel_arguments_follow_profile_and_init() {
    for (init, profile, expected) in [
        (
            InitStrategy::Tini,
            Profile::ReadWrite,
            "console=ttyS0 reboot=k panic=-1 root=/dev/vda rw init=/usr/bin/metald-init",
        ),
        (
            InitStrategy::Tini,
            Profile::ReadOnly,
            "console=ttyS0 reboot=k panic=-1 root=/dev/vda ro init=/usr/bin/metald-init",
        ),
        (
            InitStrategy::Raw,
            Profile::ReadWrite,
            "console=ttyS0 reboot=k panic=-1 root=/dev/vda rw",
        ),
    ] {
        assert_eq!(
            kernel_arguments(&RootfsTarget {
                init,
                profile,
                ..target()
            }),
            expected
        );
    }
}

#[test]
fn a_relative_working_directory_of_the_request_is_refused() {
    let mut target = target();
    target.runtime.working_dir = Some("srv".to_owned());
    let error = metadata(&config(), &target).unwrap_err();
    assert_eq!(
        error.kind(),
        &BuildErrorKind::InvalidArgument {
            field: "runtime_config.working_dir"
        }
    );
}

#[test]
fn everything_that_decides_the_content_decides_the_identity_and_nothing_else_does() {
    let file = |path, mode, text: &str| AddedFile {
        path,
        mode,
        content: AddedContent::Text(text.to_owned()),
    };
    let files = vec![file("/a", 0o644, "x")];
    let base = identity(&[[1; 32], [2; 32]], &files, &Settings::default(), &target());
    assert_eq!(
        base,
        identity(&[[1; 32], [2; 32]], &files, &Settings::default(), &target())
    );

    let with = |change: fn(&mut RootfsTarget)| {
        let mut target = target();
        change(&mut target);
        identity(&[[1; 32], [2; 32]], &files, &Settings::default(), &target)
    };
    let others = [
        (
            "order of layers",
            identity(&[[2; 32], [1; 32]], &files, &Settings::default(), &target()),
        ),
        (
            "fewer layers",
            identity(&[[1; 32]], &files, &Settings::default(), &target()),
        ),
        (
            "no file",
            identity(&[[1; 32], [2; 32]], &[], &Settings::default(), &target()),
        ),
        (
            "path",
            identity(
                &[[1; 32], [2; 32]],
                &[file("/b", 0o644, "x")],
                &Settings::default(),
                &target(),
            ),
        ),
        (
            "mode of a file",
            identity(
                &[[1; 32], [2; 32]],
                &[file("/a", 0o755, "x")],
                &Settings::default(),
                &target(),
            ),
        ),
        (
            "content",
            identity(
                &[[1; 32], [2; 32]],
                &[file("/a", 0o644, "y")],
                &Settings::default(),
                &target(),
            ),
        ),
        ("layer mode", with(|target| target.layer_mode = LayerMode::Docker)),
        ("profile", with(|target| target.profile = Profile::ReadOnly)),
        ("free space", with(|target| target.free_space_bytes = 7)),
        ("free inodes", with(|target| target.free_inodes = 7)),
    ];
    for (idx, (name, identity)) in others.iter().enumerate() {
        assert_ne!(*identity, base, "{name}");
        assert!(
            others[idx + 1..].iter().all(|(_, other)| other != identity),
            "{name}"
        );
    }
    // Part of the format: a change moves the UUID of every image, so it has to be wanted.
    assert_eq!(
        hex::encode(identity(&[], &[], &Settings::default(), &target())),
        PINNED_IDENTITY,
        "the documented encoding changed"
    );
}

/// Computed apart from this code, from the documentation of [`identity`].
const PINNED_IDENTITY: &str = "7106aa2d5f2b4508a62fd9c4affbdf1bb265c827ad0d3a73f601cc9c69c5c806";

#[test]
fn what_no_process_can_be_given_is_refused() {
    type Spoil = fn(&mut ImageMetadata);
    let fine = metadata(&config(), &target()).unwrap();
    refuse_nul(&fine).unwrap();
    let spoil: [(&str, Spoil); 5] = [
        ("entrypoint", |metadata| {
            metadata.entrypoint.push("a\0b".to_owned())
        }),
        ("command", |metadata| metadata.command.push("\0".to_owned())),
        ("environment", |metadata| {
            metadata.env.insert("A\0".to_owned(), "1".to_owned());
        }),
        ("working directory", |metadata| metadata.working_dir.push('\0')),
        ("user", |metadata| metadata.user.push('\0')),
    ];
    for (what, spoil) in spoil {
        let mut spoilt = fine.clone();
        spoil(&mut spoilt);
        let error = refuse_nul(&spoilt).unwrap_err();
        assert_eq!(error.kind(), &BuildErrorKind::UnsupportedImage);
        assert!(error.to_string().contains(what), "{error}");
    }
}
