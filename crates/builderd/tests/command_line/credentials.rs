//! Where `builderd build` takes credentials from.

use super::*;

#[test]
fn a_password_comes_by_standard_input_and_is_shown_nowhere() {
    let registry = Registry::start_with(Authentication::basic("robot", "hunter2")).unwrap();
    let reference = registry.publish("team/app", "v1", &sample());
    let directory = tempfile::tempdir().unwrap();
    for (password, code) in [("hunter2\n", 0), ("hunter3", 77), ("", 64)] {
        let mut child = builderd(directory.path())
            .args(["build", &reference, "-o", "a.ext4", "--plain-http", "--json"])
            .args(["--username", "robot", "--password-stdin", "--force"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(password.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(!said.contains("hunter"), "{said}");
    }
}

#[test]
fn credentials_that_docker_has_stored_are_used() {
    let registry = Registry::start_with(Authentication::basic("robot", "hunter2")).unwrap();
    let reference = registry.publish("team/app", "v1", &sample());
    let host = registry.host();
    let directory = tempfile::tempdir().unwrap();
    let docker = directory.path().join("docker");
    fs::create_dir(&docker).unwrap();
    // The helper is written by another process, so that no child of this one holds it open for writing.
    let script = r#"printf '#!/bin/sh\necho %s\n' "'{\"Username\":\"robot\",\"Secret\":\"hunter2\"}'" > "$0"; chmod 700 "$0""#;
    let written = Command::new("sh")
        .args(["-c", script])
        .arg(docker.join("docker-credential-test"))
        .status();
    assert!(written.unwrap().success());
    // Base64 of robot:hunter2 and of robot:hunter3.
    for (config, code, expected) in [
        (
            r#"{"auths":{"HOST":{"auth":"cm9ib3Q6aHVudGVyMg=="}}}"#,
            0,
            "\"completed\"",
        ),
        (
            r#"{"auths":{"https://HOST/v2/":{"auth":"cm9ib3Q6aHVudGVyMg=="}}}"#,
            0,
            "\"completed\"",
        ),
        (
            r#"{"auths":{"HOST":{"auth":"cm9ib3Q6aHVudGVyMw=="}}}"#,
            77,
            "other credentials",
        ),
        (
            r#"{"auths":{"other.example":{"auth":"cm9ib3Q6aHVudGVyMg=="}}}"#,
            77,
            "wants a user name",
        ),
        (r#"{"credHelpers":{"HOST":"test"}}"#, 0, "\"completed\""),
        (
            r#"{"credsStore":"missing"}"#,
            77,
            "credential helper docker-credential-missing cannot be run",
        ),
        ("[", 65, "docker config.json is malformed"),
    ] {
        fs::write(docker.join("config.json"), config.replace("HOST", &host)).unwrap();
        let path = std::env::join_paths([docker.as_path(), Path::new("/usr/bin"), Path::new("/bin")]);
        let output = builderd(directory.path())
            .env("PATH", path.unwrap())
            .args([
                "build",
                &reference,
                "-o",
                "a.ext4",
                "--plain-http",
                "--json",
                "--force",
            ])
            .output()
            .unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{config}: {said}");
        assert!(
            said.contains(expected) && !said.contains("hunter"),
            "{config}: {said}"
        );
    }
}

#[test]
fn without_a_user_name_standard_input_is_an_identity_token() {
    let accounts = Authentication::bearer(&[]).with_identity_token("hunter2", "robot");
    let registry = Registry::start_with(accounts).unwrap();
    let reference = registry.publish("team/app", "v1", &sample());
    let directory = tempfile::tempdir().unwrap();
    for (token, code) in [("hunter2\n", 0), ("hunter3", 77)] {
        let mut child = builderd(directory.path())
            .args(["build", &reference, "-o", "a.ext4", "--plain-http", "--json"])
            .args(["--password-stdin", "--force"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(token.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(!said.contains("hunter"), "{said}");
    }
}
