//! `builderd config`, and what a bad value does to the program.

use std::process::{Command, Output};

use builderd::config::{Effect, Form, SETTINGS, VARIABLE_PREFIX, settings_reference};
use serde_json::Value;

/// `builderd config` with these flags, and an environment of these variables alone.
fn run(arguments: &[&str], variables: &[(String, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_builderd"));
    command.arg("config").args(arguments).env_clear();
    for (variable, value) in variables {
        command.env(variable, value);
    }
    command.output().unwrap()
}

fn variable(name: &str) -> String {
    format!("{VARIABLE_PREFIX}{name}")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_page_of_all_settings_is_up_to_date() {
    let page = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/operations/configuration.md"
    );
    let written = std::fs::read_to_string(page).unwrap_or_default();
    assert!(
        written == settings_reference(),
        "docs/operations/configuration.md is not what the table of settings says; write it anew with \
         `cargo run -p builderd -- config --markdown > docs/operations/configuration.md`"
    );
    for setting in SETTINGS {
        let row = format!("| `{}` |", setting.variable());
        assert_eq!(written.matches(&row).count(), 1, "{}", setting.variable());
    }
    let output = run(&["--markdown"], &[]);
    assert_eq!(text(&output.stdout), written);
}

#[test]
fn what_has_no_effect_is_named_beside_what_holds() {
    let arguments = [
        "--dev",
        "--state-dir",
        "/state",
        "--otel-endpoint",
        "collector:4318",
    ];
    let output = run(&arguments, &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(
        text(&output.stderr),
        "builderd: warning: UNKEY_BUILDERD_OTEL_ENDPOINT has no effect: OTEL_ENABLED is false\n"
    );
    assert!(text(&output.stdout).contains("UNKEY_BUILDERD_OTEL_ENDPOINT=collector:4318"));
}

#[test]
fn what_holds_is_shown_with_its_source_and_without_secrets() {
    let variables = [
        (variable("RATE_LIMIT"), "7"),
        (variable("PORT"), "1000"),
        (variable("STORAGE_BACKEND"), "s3"),
        (variable("STORAGE_S3_BUCKET"), "images"),
        (variable("STORAGE_S3_REGION"), "eu-central-1"),
        (variable("STORAGE_S3_ACCESS_KEY"), "AKIDEXAMPLE"),
        (variable("STORAGE_S3_SECRET_KEY"), "hunter2"),
        (variable("DOCKER_HTTPS_PROXY"), "http://user:hunter2@proxy:3128"),
        (variable("REFLECTION_ENABLED"), "0"),
        (variable("BUILD_TIMEOUT"), ""),
        (variable("TOKEN"), "hunter2"),
    ];
    let arguments = ["--dev", "--state-dir", "/state", "--port", "2000"];
    let output = run(&[&arguments[..], &["--json"]].concat(), &variables);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let settings: Value = serde_json::from_slice(&output.stdout).unwrap();
    let settings = settings.as_array().unwrap();
    for (name, value, source) in [
        ("PORT", "2000", "flag"),
        ("RATE_LIMIT", "7", "environment"),
        ("REFLECTION_ENABLED", "false", "environment"),
        ("STORAGE_S3_BUCKET", "images", "environment"),
        ("STORAGE_S3_SECRET_KEY", "***", "environment"),
        ("STORAGE_S3_ACCESS_KEY", "***", "environment"),
        ("DOCKER_HTTPS_PROXY", "***", "environment"),
        ("DOCKER_HTTP_PROXY", "", "default"),
        ("BUILD_TIMEOUT", "15m", "default"),
        ("ADDRESS", "127.0.0.1", "development"),
        ("WORKSPACE_DIR", "/state/workspace", "development"),
    ] {
        let setting = settings
            .iter()
            .find(|setting| setting["variable"] == variable(name).as_str())
            .unwrap_or_else(|| panic!("{name} is not shown"));
        assert_eq!(setting["value"], value, "{name}");
        assert_eq!(setting["source"], source, "{name}");
        let flag = format!("--{}", name.to_lowercase().replace('_', "-"));
        assert_eq!(setting["flag"], flag.as_str(), "{name}");
    }
    let of_daemon = SETTINGS
        .iter()
        .filter(|setting| !matches!(setting.effect, Effect::Client));
    assert_eq!(settings.len(), of_daemon.count());

    let printed = text(&run(&arguments, &variables).stdout);
    let line = |name: &str| {
        let begin = format!("{}=", variable(name));
        let found = printed.lines().find(|line| line.starts_with(&begin));
        found.unwrap_or_else(|| panic!("{name} is not shown: {printed}"))
    };
    assert!(line("PORT").starts_with("UNKEY_BUILDERD_PORT=2000 ") && line("PORT").ends_with("# --port"));
    assert!(line("RATE_LIMIT").ends_with("# environment"));
    assert!(line("ADDRESS").ends_with("# default of --dev"));
    assert!(line("STORAGE_S3_SECRET_KEY").starts_with("UNKEY_BUILDERD_STORAGE_S3_SECRET_KEY='***' "));
    for shown in [printed, text(&output.stdout)] {
        assert!(
            !shown.contains("hunter2") && !shown.contains("AKIDEXAMPLE"),
            "{shown}"
        );
    }
}

/// A value that has not the setting's form, where there is any.
fn bad_value(form: Form) -> Option<&'static str> {
    match form {
        Form::Bool => Some("yes"),
        Form::Integer { .. } => Some("1.5"),
        Form::Ratio => Some("2"),
        Form::Duration { .. } => Some("15 minutes"),
        Form::Address => Some("builder.example.com"),
        Form::Url => Some("localhost"),
        Form::List => Some("a\tb"),
        Form::Word(_) => Some("Other"),
        Form::Text | Form::Path => None,
    }
}

#[test]
fn a_bad_value_of_any_setting_ends_the_program_with_its_name_and_what_is_expected() {
    let mut tried = 0;
    for setting in SETTINGS
        .iter()
        .filter(|setting| !matches!(setting.effect, Effect::Client))
    {
        let Some(bad) = bad_value(setting.form) else {
            continue;
        };
        tried += 1;
        let expected = format!("expected {}", setting.form.expected());
        let by_variable = run(&["--dev"], &[(setting.variable(), bad)]);
        let flag = format!("--{}={bad}", setting.flag());
        let by_flag = run(&["--dev", &flag], &[]);
        for (output, how) in [(by_variable, ""), (by_flag, " (from the command line)")] {
            assert_eq!(output.status.code(), Some(64), "{}", setting.name);
            let said = text(&output.stderr);
            let line = format!("builderd: {}={bad:?}{how}: {expected}", setting.variable());
            assert!(said.contains(&line), "{said}\n{line}");
            assert!(output.stdout.is_empty(), "{}", setting.name);
        }
    }
    assert!(tried > 40, "{tried}");
}

#[test]
fn what_the_start_would_refuse_is_refused() {
    for (name, value, expected) in [
        (
            "DOCKER_ALLOWED_REGISTRIES",
            "*x",
            "UNKEY_BUILDERD_DOCKER_ALLOWED_REGISTRIES",
        ),
        (
            "DOCKER_INSECURE_REGISTRIES",
            "a b",
            "UNKEY_BUILDERD_DOCKER_INSECURE_REGISTRIES",
        ),
        (
            "DOCKER_REGISTRY_MIRROR",
            "ftp://mirror",
            "UNKEY_BUILDERD_DOCKER_REGISTRY_MIRROR",
        ),
        (
            "DOCKER_CERTS_DIR",
            "/nonexistent/certs.d",
            "UNKEY_BUILDERD_DOCKER_CERTS_DIR",
        ),
        ("LOG_LEVEL", "[", "UNKEY_BUILDERD_LOG_LEVEL"),
        ("TLS_MODE", "file", "UNKEY_BUILDERD_TLS_CERT_FILE"),
        ("PROT", "1", "did you mean UNKEY_BUILDERD_PORT?"),
    ] {
        let output = run(&["--dev"], &[(variable(name), value)]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{name}: {said}");
        assert!(said.contains(expected), "{name}: {said}");
    }
}
