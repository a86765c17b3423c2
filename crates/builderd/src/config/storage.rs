//! Where images are kept.

use builder_core::{
    artifact::{ArtifactConfig, GcsConfig, S3Config, S3Keys},
    request::Secret,
};

use super::values::{ConfigError, Values};

/// The settings of each backend but `local`.
const OF_BACKEND: [(&str, &[&str]); 2] = [
    (
        "s3",
        &[
            "STORAGE_S3_BUCKET",
            "STORAGE_S3_REGION",
            "STORAGE_S3_ENDPOINT",
            "STORAGE_S3_ACCESS_KEY",
            "STORAGE_S3_SECRET_KEY",
        ],
    ),
    (
        "gcs",
        &[
            "STORAGE_GCS_BUCKET",
            "STORAGE_GCS_PROJECT",
            "STORAGE_GCS_CREDENTIALS_PATH",
        ],
    ),
];

/// The backend and its settings. Whether a bucket is there and can be used shows at the start.
pub(super) fn artifacts(values: &Values, errors: &mut Vec<ConfigError>) -> ArtifactConfig {
    let backend = values.text("STORAGE_BACKEND");
    for (other, names) in OF_BACKEND {
        for name in names {
            if other != backend && !values.text(name).is_empty() {
                let problem =
                    format!("it is for UNKEY_BUILDERD_STORAGE_BACKEND={other}, and that is {backend}");
                errors.push(values.refuse(name, problem));
            }
        }
    }
    match backend {
        "s3" => ArtifactConfig::S3(s3(values, errors)),
        "gcs" => ArtifactConfig::Gcs(gcs(values, errors)),
        _ => ArtifactConfig::Local,
    }
}

fn s3(values: &Values, errors: &mut Vec<ConfigError>) -> S3Config {
    let endpoint = given(values, "STORAGE_S3_ENDPOINT");
    let region = values.text("STORAGE_S3_REGION");
    if region.is_empty() && endpoint.is_none() {
        errors.push(values.refuse(
            "STORAGE_S3_REGION",
            "STORAGE_BACKEND=s3 needs it, as eu-central-1; or UNKEY_BUILDERD_STORAGE_S3_ENDPOINT, when the bucket is not \
             Amazon's",
        ));
    }
    if !region.bytes().all(is_of_name) {
        errors.push(values.refuse(
            "STORAGE_S3_REGION",
            "expected the name of a region, as eu-central-1",
        ));
    }
    let access_key = values.text("STORAGE_S3_ACCESS_KEY");
    let secret_key = values.text("STORAGE_S3_SECRET_KEY");
    for (absent, name, other) in [
        (access_key, "STORAGE_S3_ACCESS_KEY", secret_key),
        (secret_key, "STORAGE_S3_SECRET_KEY", access_key),
    ] {
        if absent.is_empty() && !other.is_empty() {
            errors.push(values.refuse(
                name,
                "access key and secret key go together, and only one of them is set",
            ));
        }
    }
    S3Config {
        bucket: bucket(values, "STORAGE_S3_BUCKET", 63, errors),
        region: region.to_owned(),
        endpoint,
        keys: (!access_key.is_empty()).then(|| S3Keys {
            access_key: Secret::new(access_key.to_owned()),
            secret_key: Secret::new(secret_key.to_owned()),
        }),
    }
}

fn gcs(values: &Values, errors: &mut Vec<ConfigError>) -> GcsConfig {
    let project = given(values, "STORAGE_GCS_PROJECT");
    // `example.com:project` is an old form.
    let is_name = |project: &String| project.bytes().all(|byte| is_of_name(byte) || byte == b':');
    if !project.iter().all(is_name) {
        errors.push(values.refuse(
            "STORAGE_GCS_PROJECT",
            "expected the id of a project, as my-project-1",
        ));
    }
    GcsConfig {
        bucket: bucket(values, "STORAGE_GCS_BUCKET", 222, errors),
        project,
        credentials: given(values, "STORAGE_GCS_CREDENTIALS_PATH")
            .map(|_| values.path("STORAGE_GCS_CREDENTIALS_PATH")),
    }
}

fn given(values: &Values, name: &str) -> Option<String> {
    Some(values.text(name).to_owned()).filter(|value| !value.is_empty())
}

/// A bucket's name: what the services have in common ("Bucket naming rules", "Bucket names").
fn bucket(values: &Values, name: &'static str, most: usize, errors: &mut Vec<ConfigError>) -> String {
    let bucket = values.text(name);
    let fits = (3..=most).contains(&bucket.len()) && bucket.bytes().all(is_of_name);
    if !fits || bucket.starts_with('.') || bucket.ends_with('.') || bucket.contains("..") {
        let problem = format!(
            "STORAGE_BACKEND={} needs the name of a bucket: 3 to {most} of a-z, 0-9, '.', '-', '_'",
            values.text("STORAGE_BACKEND")
        );
        errors.push(values.refuse(name, problem));
    }
    bucket.to_owned()
}

const fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_')
}
