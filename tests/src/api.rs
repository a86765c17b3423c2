//! The daemon's API as its clients see it.

use std::net::SocketAddr;

use anyhow::Context as _;
use builderd::proto::{
    BuildJob, GetBuildRequest, StreamBuildLogsRequest, StreamBuildLogsResponse,
    builder_service_client::BuilderServiceClient,
};
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};

/// The tenant of [`seed_request`].
pub const TENANT: &str = "test-tenant";

/// The body of the first request in the document that the project was created from, character for character.
pub const SEED_REQUEST: &str = r#"{
    "config": {
      "tenant": {
        "tenant_id": "test-tenant",
        "tier": "TENANT_TIER_FREE"
      },
      "source": {
        "docker_image": {
          "image_uri": "nginx:1.21-alpine"
        }
      },
      "target": {
        "microvm_rootfs": {
          "init_strategy": "INIT_STRATEGY_TINI"
        }
      },
      "strategy": {
        "docker_extract": {}
      }
    }
  }"#;

/// [`SEED_REQUEST`] with another image reference and nothing else changed.
#[must_use]
pub fn seed_request(reference: &str) -> String {
    SEED_REQUEST.replace("nginx:1.21-alpine", reference)
}

/// What a Connect call was answered with.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body.
    pub body: Value,
}

/// Clients of one daemon: Connect JSON over HTTP/1.1, and gRPC.
#[derive(Clone, Debug)]
pub struct Api {
    http: reqwest::Client,
    base: String,
    grpc: BuilderServiceClient<Channel>,
}

impl Api {
    /// Clients for the daemon at `address`. Connects when it is first used.
    ///
    /// # Errors
    /// None that an address could cause.
    pub fn new(address: SocketAddr) -> anyhow::Result<Self> {
        let base = format!("http://{address}");
        let channel = Endpoint::from_shared(base.clone())?.connect_lazy();
        Ok(Self {
            http: reqwest::Client::new(),
            base,
            grpc: BuilderServiceClient::new(channel),
        })
    }

    /// The gRPC client.
    #[must_use]
    pub fn grpc(&self) -> BuilderServiceClient<Channel> {
        self.grpc.clone()
    }

    /// Calls a method with a JSON body, as the document's curl line does.
    ///
    /// # Errors
    /// When there is no answer or it is no JSON. An answer that says no is no error.
    pub async fn call(&self, method: &str, body: &str) -> anyhow::Result<Answer> {
        let url = format!("{}/builder.v1.BuilderService/{method}", self.base);
        let request = self
            .http
            .post(url)
            .header("content-type", "application/json")
            .body(body.to_owned());
        let response = request.send().await.context("no answer")?;
        let status = response.status().as_u16();
        let text = response.text().await?;
        let body =
            serde_json::from_str(&text).with_context(|| format!("{method} answered {status}: {text}"))?;
        Ok(Answer { status, body })
    }

    /// `GET /health`.
    ///
    /// # Errors
    /// When there is no answer or it is no JSON.
    pub async fn health(&self) -> anyhow::Result<Answer> {
        let response = self.http.get(format!("{}/health", self.base)).send().await?;
        let status = response.status().as_u16();
        Ok(Answer {
            status,
            body: response.json().await?,
        })
    }

    /// Sends [`seed_request`] and gives the new build's id.
    ///
    /// # Errors
    /// When it is not accepted.
    pub async fn create(&self, reference: &str) -> anyhow::Result<String> {
        let answer = self.call("CreateBuild", &seed_request(reference)).await?;
        let id = answer.body["buildId"].as_str().filter(|_| answer.status == 200);
        Ok(id
            .with_context(|| format!("CreateBuild answered {}: {}", answer.status, answer.body))?
            .to_owned())
    }

    /// Follows a build's log to its end, then gives the build.
    ///
    /// # Errors
    /// When the log ends with an error or the build cannot be had.
    pub async fn finish(
        &self,
        build_id: &str,
        mut on_line: impl FnMut(&StreamBuildLogsResponse),
    ) -> anyhow::Result<BuildJob> {
        let request = StreamBuildLogsRequest {
            build_id: build_id.into(),
            tenant_id: TENANT.into(),
            follow: true,
            ..Default::default()
        };
        let mut lines = self.grpc().stream_build_logs(request).await?.into_inner();
        while let Some(line) = lines.message().await? {
            on_line(&line);
        }
        self.build(build_id).await
    }

    /// One build, over gRPC.
    ///
    /// # Errors
    /// When it cannot be had.
    pub async fn build(&self, build_id: &str) -> anyhow::Result<BuildJob> {
        let request = GetBuildRequest {
            build_id: build_id.into(),
            tenant_id: TENANT.into(),
        };
        self.grpc()
            .get_build(request)
            .await?
            .into_inner()
            .build
            .context("a response without a build")
    }

    /// One build, over Connect, as JSON.
    ///
    /// # Errors
    /// When it cannot be had.
    pub async fn build_as_json(&self, build_id: &str) -> anyhow::Result<Value> {
        let body = json!({ "build_id": build_id, "tenant_id": TENANT }).to_string();
        let answer = self.call("GetBuild", &body).await?;
        anyhow::ensure!(
            answer.status == 200,
            "GetBuild answered {}: {}",
            answer.status,
            answer.body
        );
        Ok(answer.body["build"].clone())
    }
}
