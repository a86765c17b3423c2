//! Many builds and many followers at once, and what that costs the daemon.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use builderd::proto::{
    BuildConfig, BuildSource, BuildState, BuildTarget, CreateBuildRequest, DockerImageSource,
    GetBuildRequest, MicroVmRootfs, StreamBuildLogsRequest, TenantContext, build_source::SourceType,
    build_target::TargetType, builder_service_client::BuilderServiceClient,
};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(300);

/// What is asked of the daemon.
#[derive(Clone, Debug)]
pub struct Load {
    /// The daemon.
    pub address: SocketAddr,
    /// The image that is built.
    pub image: String,
    /// Builds.
    pub builds: usize,
    /// Followers of each build, each on a connection of its own.
    pub followers_per_build: usize,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Builds that completed.
    pub completed: usize,
    /// Log lines that all followers got together.
    pub lines: usize,
    /// How long GetBuild took while everything else went on, in order.
    pub get_build: Vec<Duration>,
    /// From the first request to the last build's end.
    pub took: Duration,
}

impl Outcome {
    /// The time below which so many percent of the calls of GetBuild stayed; 0 without calls.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> Duration {
        let last = self.get_build.len().saturating_sub(1);
        let index = (self.get_build.len() * percent).div_ceil(100).saturating_sub(1);
        self.get_build.get(index.min(last)).copied().unwrap_or_default()
    }
}

/// Starts all builds, follows each with all of its followers, and asks for one build over and over meanwhile.
///
/// # Errors
/// When a call fails, a follower misses a line or sees one twice, or it takes longer than five minutes.
pub async fn run(load: &Load) -> anyhow::Result<Outcome> {
    tokio::time::timeout(LIMIT, run_without_limit(load))
        .await
        .context("the load was not done after five minutes")?
}

async fn run_without_limit(load: &Load) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    let client = connect(load.address).await?;
    let mut builds = Vec::new();
    for number in 0..load.builds {
        // A few tenants, as it is in life.
        let tenant = format!("load-{}", number % 5);
        let answer = client.clone().create_build(request(&tenant, &load.image)).await?;
        builds.push((tenant, answer.into_inner().build_id));
    }
    let (tenant, build) = builds.first().context("a load of no builds")?.clone();
    let done = Arc::new(AtomicBool::new(false));
    let asking = tokio::spawn(ask(client.clone(), tenant, build, Arc::clone(&done)));

    let mut followers = JoinSet::new();
    for (tenant, build) in &builds {
        for _ in 0..load.followers_per_build {
            followers.spawn(follow(load.address, tenant.clone(), build.clone()));
        }
    }
    let mut lines = 0;
    while let Some(followed) = followers.join_next().await {
        lines += followed??;
    }
    let mut completed = 0;
    for (tenant, build) in builds {
        let request = GetBuildRequest {
            build_id: build,
            tenant_id: tenant,
        };
        let answer = client.clone().get_build(request).await?.into_inner();
        completed += usize::from(
            answer
                .build
                .is_some_and(|build| build.state() == BuildState::Completed),
        );
    }
    let took = started.elapsed();
    done.store(true, Ordering::Relaxed);
    let mut get_build = asking.await??;
    get_build.sort_unstable();
    Ok(Outcome {
        completed,
        lines,
        get_build,
        took,
    })
}

async fn ask(
    mut client: BuilderServiceClient<Channel>,
    tenant_id: String,
    build_id: String,
    done: Arc<AtomicBool>,
) -> anyhow::Result<Vec<Duration>> {
    let mut times = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let request = GetBuildRequest {
            build_id: build_id.clone(),
            tenant_id: tenant_id.clone(),
        };
        let started = Instant::now();
        client.get_build(request).await?;
        times.push(started.elapsed());
    }
    Ok(times)
}

/// Follows a log to its end: how many lines it has.
async fn follow(address: SocketAddr, tenant_id: String, build_id: String) -> anyhow::Result<usize> {
    let request = StreamBuildLogsRequest {
        build_id,
        tenant_id,
        follow: true,
        ..Default::default()
    };
    let mut lines = connect(address)
        .await?
        .stream_build_logs(request)
        .await?
        .into_inner();
    let mut count = 0;
    while let Some(line) = lines.message().await? {
        count += 1;
        ensure!(
            usize::try_from(line.sequence) == Ok(count),
            "line {count} came as {}",
            line.sequence
        );
    }
    Ok(count)
}

async fn connect(address: SocketAddr) -> anyhow::Result<BuilderServiceClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    Ok(BuilderServiceClient::new(endpoint.connect().await?))
}

fn request(tenant: &str, image: &str) -> CreateBuildRequest {
    let source = DockerImageSource {
        image_uri: image.to_owned(),
        ..Default::default()
    };
    CreateBuildRequest {
        config: Some(BuildConfig {
            tenant: Some(TenantContext {
                tenant_id: tenant.to_owned(),
                ..Default::default()
            }),
            source: Some(BuildSource {
                source_type: Some(SourceType::DockerImage(source)),
            }),
            target: Some(BuildTarget {
                target_type: Some(TargetType::MicrovmRootfs(MicroVmRootfs::default())),
            }),
            ..Default::default()
        }),
    }
}

/// The most memory that a process has had, in bytes (`VmHWM` in proc(5)).
///
/// # Errors
/// When there is no such process.
pub fn peak_memory(process: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("the kernel tells no VmHWM")?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_calls_that_were_made() {
        let outcome = |milliseconds: std::ops::RangeInclusive<u64>| Outcome {
            completed: 0,
            lines: 0,
            get_build: milliseconds.map(Duration::from_millis).collect(),
            took: Duration::ZERO,
        };
        assert_eq!(outcome(1..=100).percentile(99), Duration::from_millis(99));
        assert_eq!(outcome(1..=100).percentile(50), Duration::from_millis(50));
        assert_eq!(outcome(7..=7).percentile(99), Duration::from_millis(7));
        #[expect(clippy::reversed_empty_ranges, reason = "none at all")]
        let none = outcome(1..=0);
        assert_eq!(none.percentile(99), Duration::ZERO);
    }
}
