//! `builderd serve`: what it says, how it ends, what it refuses.

use super::*;

#[test]
fn the_daemon_says_where_it_is_answers_and_stops_when_told() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = builderd(directory.path())
        .args(["--dev", "--port", "0", "--log-format", "json"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines
        .by_ref()
        .map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap())
        .find(|line| line["message"] == "Serving")
        .expect("a line that says where it serves");
    assert_eq!(line["version"], env!("CARGO_PKG_VERSION"));
    let address = line["server.address"].as_str().unwrap();
    assert!(address.starts_with("127.0.0.1:"), "{line}");

    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(directory.path().join("builderd-data/data").is_dir());

    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let rest: Vec<_> = lines.map(Result::unwrap).collect();
    assert!(
        rest.iter().any(|line| line.contains("Draining")) && rest.last().unwrap().contains("Stopped"),
        "{rest:?}"
    );
}

#[test]
fn a_daemon_that_cannot_write_names_the_setting() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a-file"), "").unwrap();
    for (flag, variable) in [
        ("--database-data-dir", "UNKEY_BUILDERD_DATABASE_DATA_DIR"),
        ("--rootfs-output-dir", "UNKEY_BUILDERD_ROOTFS_OUTPUT_DIR"),
        ("--workspace-dir", "UNKEY_BUILDERD_WORKSPACE_DIR"),
        ("--scratch-dir", "UNKEY_BUILDERD_SCRATCH_DIR"),
    ] {
        let output = run(
            directory.path(),
            &["serve", "--dev", "--port", "0", flag, "a-file"],
        );
        assert_eq!(output.status.code(), Some(73), "{flag}: {}", text(&output.stderr));
        assert!(
            text(&output.stderr).contains(variable),
            "{flag}: {}",
            text(&output.stderr)
        );
    }
}

#[test]
fn a_registry_setting_that_names_no_host_says_what_it_has_to_be() {
    let directory = tempfile::tempdir().unwrap();
    for (flag, variable, value, expected) in [
        (
            "--docker-insecure-registries",
            "UNKEY_BUILDERD_DOCKER_INSECURE_REGISTRIES",
            "http://x",
            "expected HOST[:PORT], got \"http://x\"",
        ),
        (
            "--docker-registry-mirror",
            "UNKEY_BUILDERD_DOCKER_REGISTRY_MIRROR",
            "ftp://x",
            "expected HOST[:PORT], with https:// or http:// before it or not, got \"ftp://x\"",
        ),
    ] {
        let output = run(directory.path(), &["serve", "--dev", "--port", "0", flag, value]);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{flag}: {errors}");
        assert!(errors.contains(&format!("{variable}: {expected}")), "{errors}");
    }
}

#[test]
fn a_database_of_a_later_version_is_not_blamed_on_its_directory() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("builderd-data/data");
    fs::create_dir_all(&data).unwrap();
    let connection = rusqlite::Connection::open(data.join("builderd.db")).unwrap();
    connection.pragma_update(None, "user_version", 1_000).unwrap();
    drop(connection);
    let output = run(directory.path(), &["serve", "--dev", "--port", "0"]);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{errors}");
    assert!(
        errors.contains("schema version 1000") && !errors.contains("this user can write to"),
        "{errors}"
    );
}

#[test]
fn a_second_daemon_on_the_same_state_is_told_of_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = builderd(directory.path())
        .args(["--dev", "--port", "0", "--log-format", "json"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(first.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("\"Serving\"")));
    let second = run(directory.path(), &["serve", "--dev", "--port", "0"]);
    signal(&first, "TERM");
    let errors = text(&second.stderr);
    assert_eq!(second.status.code(), Some(69), "{errors}");
    assert!(
        errors.contains("UNKEY_BUILDERD_DATABASE_DATA_DIR: another builderd uses ")
            && errors.contains("builderd-data/data: stop it or use another directory"),
        "{errors}"
    );
    lines.for_each(drop);
    assert_eq!(first.wait().unwrap().code(), Some(0));
}
