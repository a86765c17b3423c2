//! What is refused, and in which words.

use std::ffi::OsString;

use builderd::config::{Effect, Form, SETTINGS, Values};

use crate::{collect, production, refusal};

#[test]
fn values_of_another_form_are_refused_with_what_is_expected() {
    for (name, value, expected) in [
        ("PORT", "65536", "expected a whole number from 0 to 65535"),
        ("PORT", "-1", "expected a whole number"),
        ("PORT", "+80", "expected a whole number"),
        ("PORT", " 80", "expected a whole number"),
        ("ADDRESS", "builder.example.com", "expected an IP address"),
        ("SHUTDOWN_TIMEOUT", "10", "expected a duration"),
        ("BUILD_TIMEOUT", "0", "expected a duration above zero"),
        ("BUILD_TIMEOUT", "-5m", "expected a duration above zero"),
        ("BUILD_TIMEOUT", "15 minutes", "as 15m or 1h30m"),
        ("RATE_LIMIT", "0", "expected a whole number"),
        ("MAX_CONCURRENT_BUILDS", "0", "from 1 to 1024"),
        ("STORAGE_BACKEND", "S3", "expected local, s3 or gcs"),
        ("STORAGE_CACHE_ENABLED", "yes", "expected true or false"),
        (
            "STORAGE_CACHE_MAX_SIZE_GB",
            "99999999999999",
            "expected a whole number",
        ),
        (
            "TENANT_DEFAULT_TIER",
            "gold",
            "expected free, pro, enterprise or dedicated",
        ),
        ("LOG_FORMAT", "xml", "expected json or pretty"),
        ("LOG_LEVEL", "[", "expected error, warn, info, debug or trace"),
        ("ASSETMANAGER_ENDPOINT", "localhost:8083", "expected a URL"),
        ("OTEL_SAMPLING_RATE", "2", "expected a number from 0 to 1"),
    ] {
        let refused = refusal(production(&[(name, value)]));
        let begin = format!("UNKEY_BUILDERD_{name}={value:?}");
        assert!(
            refused.starts_with(&begin) && refused.contains(expected),
            "{refused}"
        );
    }
}

#[test]
fn what_is_not_there_yet_is_refused_with_its_reason() {
    let refused = refusal(production(&[("DATABASE_TYPE", "postgres")]));
    assert!(refused.contains("yet: set UNKEY_BUILDERD_"), "{refused}");
    // Everything that does nothing: its default is accepted, any other value is not.
    for setting in SETTINGS {
        let Effect::NotYet(reason) = setting.effect else {
            continue;
        };
        let other = match setting.form {
            Form::Bool => {
                if setting.default == "true" {
                    "false"
                } else {
                    "true"
                }
            }
            Form::Integer { .. } => "77",
            Form::Ratio => "0.5",
            Form::Duration { .. } => "77s",
            Form::Address => "10.0.0.1",
            Form::Url => "https://example.com",
            Form::Word(words) => words.last().unwrap(),
            Form::Text | Form::Path | Form::List => "/something/else",
        };
        let refused = refusal(production(&[(setting.name, other)]));
        assert!(
            refused.starts_with(&setting.variable()) && refused.contains(reason),
            "{refused}"
        );
        if !setting.default.is_empty() {
            production(&[(setting.name, setting.default)]).unwrap_or_else(|errors| panic!("{errors:?}"));
        }
    }
    // The same value in another spelling is the same value.
    production(&[("CLEANUP_INTERVAL", "60m")]).unwrap();
}

#[test]
fn secrets_are_never_shown() {
    for name in [
        "DATABASE_PASSWORD",
        "STORAGE_S3_SECRET_KEY",
        "STORAGE_S3_ACCESS_KEY",
    ] {
        let refused = refusal(production(&[(name, "hunter2")]));
        assert!(
            refused.contains(name) && !refused.contains("hunter2"),
            "{refused}"
        );
    }
    let values = collect(&[("TENANT_ID", "acme")], Some("/state")).unwrap();
    assert!(format!("{values:?}").contains("acme"));
}

#[test]
fn unknown_variables_are_refused_with_a_suggestion() {
    for (name, suggestion) in [
        ("PROT", Some("UNKEY_BUILDERD_PORT")),
        ("BUILD_TIMOUT", Some("UNKEY_BUILDERD_BUILD_TIMEOUT")),
        (
            "STORAGE_CACHE_SIZE_GB",
            Some("UNKEY_BUILDERD_STORAGE_CACHE_MAX_SIZE_GB"),
        ),
        ("ZZZ", None),
    ] {
        let refused = refusal(production(&[(name, "a secret perhaps")]));
        assert!(
            refused.starts_with(&format!("UNKEY_BUILDERD_{name}: there is no such setting")),
            "{refused}"
        );
        assert!(!refused.contains("a secret perhaps"), "{refused}");
        match suggestion {
            Some(suggestion) => assert!(
                refused.contains(&format!("did you mean {suggestion}?")),
                "{refused}"
            ),
            None => assert!(!refused.contains("did you mean"), "{refused}"),
        }
    }
    // Other programs' variables are none of our business.
    Values::collect(
        [(OsString::from("UNKEY_METALD_PORT"), OsString::from("1"))],
        |_| None,
        None,
    )
    .unwrap();
}

#[test]
fn a_proxy_of_another_form_is_refused_without_its_password() {
    for (name, value, expected) in [
        (
            "DOCKER_HTTPS_PROXY",
            "http://user:hunter2@proxy/path",
            "http://[user:password@]host[:port]",
        ),
        ("DOCKER_HTTP_PROXY", "socks5://user:hunter2@proxy", "SOCKS"),
        ("DOCKER_NO_PROXY", "10.0.0.0/33", "10.0.0.0/8"),
    ] {
        let errors = production(&[(name, value)]).unwrap_err();
        let text = errors.iter().map(ToString::to_string).collect::<String>();
        assert!(
            text.contains(name) && text.contains(expected) && !text.contains("hunter2"),
            "{text}"
        );
    }
}

#[test]
fn all_errors_come_at_once() {
    let errors = production(&[("PORT", "x"), ("RATE_LIMIT", "y"), ("PROT", "z")]).unwrap_err();
    assert_eq!(errors.len(), 3, "{errors:?}");
}

#[test]
fn a_bucket_needs_its_settings_and_no_others() {
    let bucket = [("STORAGE_BACKEND", "s3"), ("STORAGE_S3_BUCKET", "images")];
    let with = |more: &[(&'static str, &'static str)]| production(&[&bucket, more].concat());
    with(&[("STORAGE_S3_REGION", "eu-central-1")]).unwrap();
    with(&[("STORAGE_S3_ENDPOINT", "http://127.0.0.1:9000")]).unwrap();
    production(&[("STORAGE_BACKEND", "gcs"), ("STORAGE_GCS_BUCKET", "my_images")]).unwrap();
    for (name, values, expected) in [
        (
            "no bucket",
            vec![("STORAGE_BACKEND", "gcs")],
            "UNKEY_BUILDERD_STORAGE_GCS_BUCKET",
        ),
        (
            "no name of a bucket",
            vec![("STORAGE_BACKEND", "gcs"), ("STORAGE_GCS_BUCKET", "a/b/c")],
            "UNKEY_BUILDERD_STORAGE_GCS_BUCKET=\"a/b/c\"",
        ),
        ("no region", bucket.to_vec(), "UNKEY_BUILDERD_STORAGE_S3_REGION"),
        (
            "half of the keys",
            [
                &bucket[..],
                &[("STORAGE_S3_REGION", "eu-1"), ("STORAGE_S3_ACCESS_KEY", "AKID")],
            ]
            .concat(),
            "UNKEY_BUILDERD_STORAGE_S3_SECRET_KEY",
        ),
        (
            "another backend's",
            vec![("STORAGE_GCS_PROJECT", "p")],
            "it is for UNKEY_BUILDERD_STORAGE_BACKEND=gcs",
        ),
    ] {
        let refused = refusal(production(&values));
        assert!(
            refused.contains(expected) && !refused.contains("AKID"),
            "{name}: {refused}"
        );
    }
}
