//! Which bucket, and how it is spoken to.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use object_store::{
    BackoffConfig, ClientOptions, HeaderMap, HeaderValue, ObjectStore, RetryConfig, aws::AmazonS3Builder,
    gcp::GoogleCloudStorageBuilder, multipart::MultipartStore,
};

use crate::request::Secret;

/// How long a connection may take to be there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one request may take: a part at half a megabit a second.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// Attempts after the first one, and for how long they are made. Requests are signed once, and a signature is good for
/// 15 minutes at most.
const RETRIES: usize = 5;
const RETRY_FOR: Duration = Duration::from_secs(180);

/// Who pays for a request, and whose quota counts (Cloud Storage, "Request headers for XML API").
const USER_PROJECT: &str = "x-goog-user-project";

/// A bucket of Amazon S3, or of a service that speaks its protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Config {
    /// The bucket; it exists.
    pub bucket: String,
    /// Its region; empty for `us-east-1`, which most services but Amazon's take.
    pub region: String,
    /// `http://host[:port]` or `https://host[:port]`; `None` for Amazon's own of the region. The bucket is then part of the
    /// path and not of the host's name.
    pub endpoint: Option<String>,
    /// The keys; `None` for those that the machine or the container has by its role.
    pub keys: Option<S3Keys>,
}

/// What requests to S3 are signed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Keys {
    /// Names the secret key.
    pub access_key: Secret,
    /// Signs requests.
    pub secret_key: Secret,
}

/// A bucket of Google Cloud Storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GcsConfig {
    /// The bucket; it exists.
    pub bucket: String,
    /// The project that requests are charged to; `None` for the bucket's own.
    pub project: Option<String>,
    /// A service account's key as JSON; `None` for the application default credentials or the machine's own account.
    pub credentials: Option<PathBuf>,
}

/// Where finished images are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArtifactConfig {
    /// Below the output directory.
    Local,
    /// In S3.
    S3(S3Config),
    /// In Google Cloud Storage.
    Gcs(GcsConfig),
}

/// A bucket's two interfaces, and what belongs to it.
pub(super) struct Client {
    pub(super) objects: Arc<dyn ObjectStore>,
    pub(super) uploads: Arc<dyn MultipartStore>,
    pub(super) scheme: &'static str,
    pub(super) bucket: String,
    /// What no error may show, should a server answer with it.
    pub(super) secrets: Vec<Secret>,
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

impl S3Config {
    pub(super) fn client(&self) -> Result<Client, Cause> {
        let plain = self
            .endpoint
            .as_deref()
            .is_some_and(|endpoint| endpoint.starts_with("http://"));
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&self.bucket)
            .with_client_options(client_options().with_allow_http(plain))
            .with_retry(retry());
        if !self.region.is_empty() {
            builder = builder.with_region(&self.region);
        }
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
        }
        let mut secrets = Vec::new();
        if let Some(keys) = &self.keys {
            builder = builder
                .with_access_key_id(keys.access_key.reveal())
                .with_secret_access_key(keys.secret_key.reveal());
            secrets = vec![keys.access_key.clone(), keys.secret_key.clone()];
        }
        let store = Arc::new(builder.build()?);
        Ok(Client {
            objects: Arc::<object_store::aws::AmazonS3>::clone(&store),
            uploads: store,
            scheme: "s3",
            bucket: self.bucket.clone(),
            secrets,
        })
    }
}

impl GcsConfig {
    pub(super) fn client(&self) -> Result<Client, Cause> {
        let mut options = client_options();
        if let Some(project) = &self.project {
            let mut headers = HeaderMap::new();
            headers.insert(USER_PROJECT, HeaderValue::from_str(project)?);
            options = options.with_default_headers(headers);
        }
        let mut builder = GoogleCloudStorageBuilder::new()
            .with_bucket_name(&self.bucket)
            .with_retry(retry());
        if let Some(path) = &self.credentials {
            let key = fs::read_to_string(path)?;
            // Another server's key says where that server is; that of a test is not encrypted.
            let fields: serde_json::Value = serde_json::from_str(&key)?;
            let plain = fields
                .get("gcs_base_url")
                .and_then(serde_json::Value::as_str)
                .is_some_and(|base| base.starts_with("http://"));
            options = options.with_allow_http(plain);
            builder = builder.with_service_account_key(key);
        }
        let store = Arc::new(builder.with_client_options(options).build()?);
        Ok(Client {
            objects: Arc::<object_store::gcp::GoogleCloudStorage>::clone(&store),
            uploads: store,
            scheme: "gs",
            bucket: self.bucket.clone(),
            secrets: Vec::new(),
        })
    }
}

fn client_options() -> ClientOptions {
    ClientOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_timeout(REQUEST_TIMEOUT)
        .with_user_agent(HeaderValue::from_static(concat!(
            "builderd/",
            env!("CARGO_PKG_VERSION")
        )))
}

fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: RETRIES,
        retry_timeout: RETRY_FOR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_are_not_shown() {
        let config = S3Config {
            bucket: "images".to_owned(),
            region: String::new(),
            endpoint: None,
            keys: Some(S3Keys {
                access_key: Secret::new("AKIAEXAMPLE".to_owned()),
                secret_key: Secret::new("wJalrXUtnFEMI".to_owned()),
            }),
        };
        let shown = format!("{:?}", ArtifactConfig::S3(config));
        assert!(
            shown.contains("images") && !shown.contains("AKIA") && !shown.contains("wJal"),
            "{shown}"
        );
    }

    #[test]
    fn a_credentials_file_that_is_none_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in [
            ("absent", None),
            ("not JSON", Some("key")),
            ("no key", Some("{}")),
            ("no object", Some("[1]")),
        ] {
            let path = directory.path().join(name);
            if let Some(content) = content {
                fs::write(&path, content).unwrap();
            }
            let config = GcsConfig {
                bucket: "images".to_owned(),
                project: None,
                credentials: Some(path),
            };
            assert!(config.client().is_err(), "{name}");
        }
    }
}
