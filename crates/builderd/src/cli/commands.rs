//! One function for each method that takes no build request.

use std::time::{Duration, SystemTime};

use clap::Args;
use prost_types::Timestamp;

use super::{
    connection::Connection,
    follow::{Follower, Show},
    options::{Options, duration},
    output::{
        age, bytes, json, moment, note, print, print_json, print_json_line, record, seconds, state, table,
    },
};
use crate::{
    exit::{Exit, Failure},
    proto::{
        BuildJob, BuildState, CancelBuildRequest, DeleteBuildRequest, GetBuildRequest, GetBuildStatsRequest,
        GetTenantQuotasRequest, ListBuildsRequest, OptimizationSavings, StreamBuildLogsRequest,
    },
};

/// A listing of all pages ends here, whatever the service says.
const MAX_PAGES: usize = 10_000;

#[derive(Debug, Args)]
pub(super) struct BuildArguments {
    /// The build, as create-build named it
    #[arg(value_name = "BUILD_ID")]
    build_id: String,
}

#[derive(Debug, Args)]
pub(super) struct DeleteArguments {
    /// The build, as create-build named it
    #[arg(value_name = "BUILD_ID")]
    build_id: String,

    /// End it first when it waits or runs
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(super) struct ListArguments {
    /// Only builds in these states, as completed,failed
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = build_state)]
    state: Vec<BuildState>,

    /// At most so many on a page [default: the service's, 50]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    page_size: Option<i32>,

    /// Where the page starts, as the page before said
    #[arg(long, value_name = "TOKEN", conflicts_with = "all")]
    page_token: Option<String>,

    /// All pages
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
pub(super) struct LogArguments {
    /// The build, as create-build named it
    #[arg(value_name = "BUILD_ID")]
    build_id: String,

    /// Wait for further lines until the build has ended, over broken connections
    #[arg(long, short)]
    follow: bool,

    /// The first line to print
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..))]
    from_sequence: i64,

    #[command(flatten)]
    reconnect: Reconnect,
}

#[derive(Debug, Args)]
pub(super) struct Reconnect {
    /// How long to try again when the connection breaks while following
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = duration)]
    pub(super) reconnect_for: Duration,
}

#[derive(Debug, Args)]
pub(super) struct StatsArguments {
    /// Builds of the last so long
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with_all = ["start", "end"])]
    since: Option<Duration>,

    /// Builds from this moment on, as 2026-01-31T00:00:00Z
    #[arg(long, value_name = "TIME", value_parser = timestamp)]
    start: Option<Timestamp>,

    /// Builds before this moment
    #[arg(long, value_name = "TIME", value_parser = timestamp)]
    end: Option<Timestamp>,
}

fn build_state(text: &str) -> Result<BuildState, String> {
    let name = text.to_ascii_uppercase();
    let name = format!("BUILD_STATE_{}", name.trim_start_matches("BUILD_STATE_"));
    BuildState::from_str_name(&name)
        .filter(|state| *state != BuildState::Unspecified)
        .ok_or_else(|| {
            "expected pending, pulling, extracting, building, optimizing, completed, failed, cancelled or cleaning"
                .to_owned()
        })
}

fn timestamp(text: &str) -> Result<Timestamp, String> {
    text.parse()
        .map_err(|_| "expected a moment, as 2026-01-31T00:00:00Z".to_owned())
}

pub(super) async fn get_build(
    connection: &Connection,
    options: &Options,
    arguments: &BuildArguments,
) -> Result<(), Failure> {
    let request = GetBuildRequest {
        build_id: arguments.build_id.clone(),
        tenant_id: options.tenant()?,
    };
    let answer = connection.client().get_build(connection.request(request)).await;
    let answer = answer.map_err(|status| connection.failure(&status))?.into_inner();
    if options.json {
        return print_json(&json("GetBuildResponse", &answer)?);
    }
    let build = answer
        .build
        .ok_or_else(|| Failure::new(Exit::Internal, "the answer holds no build"))?;
    print(&build_record(&build))
}

/// A build, one line for each thing that is known of it.
pub(super) fn build_record(build: &BuildJob) -> String {
    let config = build.config.clone().unwrap_or_default();
    let image = build.image_metadata.clone().unwrap_or_default();
    let metrics = build.metrics.clone().unwrap_or_default();
    let queue = match build.queue_position {
        0 => String::new(),
        position => format!("{position} before it"),
    };
    let progress = match build.state() {
        BuildState::Completed => String::new(),
        _ => format!("{} %  {}", build.progress_percent, build.current_step),
    };
    record(&[
        ("build", build.build_id.clone()),
        ("name", config.build_name),
        ("state", state(build.state)),
        ("progress", progress),
        ("queue", queue),
        ("error", build.error_message.clone()),
        ("image", super::create::image_of(&build.config)),
        ("digest", image.image_digest),
        ("created", moment(build.created_at)),
        ("started", moment(build.started_at)),
        ("ended", moment(build.completed_at)),
        ("took", seconds(metrics.total_duration_ms)),
        ("pulled", bytes(metrics.pulled_bytes)),
        ("rootfs", build.rootfs_path.clone()),
        ("size", bytes(build.rootfs_size_bytes)),
        ("on disk", bytes(metrics.disk_usage_bytes)),
        ("sha256", build.rootfs_checksum.clone()),
        ("saved", saved(&metrics.optimization)),
        ("kernel arguments", image.kernel_args),
        ("with dm-verity", image.verity_kernel_args),
        ("asset", build.asset_id.clone()),
    ])
}

/// What each rule of the optimization has saved.
fn saved(savings: &[OptimizationSavings]) -> String {
    let texts: Vec<String> = savings
        .iter()
        .map(|saving| {
            format!(
                "{} bytes of {} files by {}",
                saving.bytes, saving.files, saving.rule
            )
        })
        .collect();
    texts.join(", ")
}

pub(super) async fn list_builds(
    connection: &Connection,
    options: &Options,
    arguments: &ListArguments,
) -> Result<(), Failure> {
    let mut request = ListBuildsRequest {
        tenant_id: options.tenant()?,
        state_filter: arguments.state.iter().map(|state| i32::from(*state)).collect(),
        page_size: arguments.page_size.unwrap_or(0),
        page_token: arguments.page_token.clone().unwrap_or_default(),
    };
    let mut builds = Vec::new();
    let mut last;
    let mut pages = 0;
    loop {
        let page = connection
            .client()
            .list_builds(connection.request(request.clone()))
            .await;
        let mut page = page.map_err(|status| connection.failure(&status))?.into_inner();
        builds.append(&mut page.builds);
        request.page_token.clone_from(&page.next_page_token);
        last = page;
        pages += 1;
        if !arguments.all || last.next_page_token.is_empty() || pages == MAX_PAGES {
            break;
        }
    }
    last.builds = builds;
    if options.json {
        return print_json(&json("ListBuildsResponse", &last)?);
    }
    print(&builds_table(&last.builds))?;
    let shown = last.builds.len();
    if last.next_page_token.is_empty() {
        note(&format!("{shown} of {} builds", last.total_count));
    } else {
        note(&format!(
            "{shown} of {} builds; next: --page-token {}, or --all",
            last.total_count, last.next_page_token
        ));
    }
    Ok(())
}

fn builds_table(builds: &[BuildJob]) -> String {
    let rows: Vec<_> = builds
        .iter()
        .map(|build| {
            [
                build.build_id.clone(),
                state(build.state),
                format!("{}%", build.progress_percent),
                age(build.created_at),
                seconds(
                    build
                        .metrics
                        .as_ref()
                        .map_or(0, |metrics| metrics.total_duration_ms),
                ),
                super::create::image_of(&build.config),
            ]
        })
        .collect();
    table(["BUILD", "STATE", "DONE", "AGE", "TOOK", "IMAGE"], &rows)
}

pub(super) async fn cancel_build(
    connection: &Connection,
    options: &Options,
    arguments: &BuildArguments,
) -> Result<(), Failure> {
    let request = CancelBuildRequest {
        build_id: arguments.build_id.clone(),
        tenant_id: options.tenant()?,
    };
    let answer = connection
        .client()
        .cancel_build(connection.request(request))
        .await;
    let answer = answer.map_err(|status| connection.failure(&status))?.into_inner();
    if options.json {
        return print_json(&json("CancelBuildResponse", &answer)?);
    }
    print(&record(&[
        ("build", arguments.build_id.clone()),
        ("state", state(answer.state)),
    ]))
}

pub(super) async fn delete_build(
    connection: &Connection,
    options: &Options,
    arguments: &DeleteArguments,
) -> Result<(), Failure> {
    let request = DeleteBuildRequest {
        build_id: arguments.build_id.clone(),
        tenant_id: options.tenant()?,
        force: arguments.force,
    };
    let answer = connection
        .client()
        .delete_build(connection.request(request))
        .await;
    let answer = answer.map_err(|status| connection.failure(&status))?.into_inner();
    if options.json {
        return print_json(&json("DeleteBuildResponse", &answer)?);
    }
    print(&record(&[
        ("build", arguments.build_id.clone()),
        ("deleted", answer.success.to_string()),
    ]))
}

pub(super) async fn stream_logs(
    connection: &Connection,
    options: &Options,
    arguments: &LogArguments,
) -> Result<(), Failure> {
    let show = if options.json {
        Show::Json { wrapped: false }
    } else {
        Show::Result
    };
    if arguments.follow {
        let mut follower = Follower {
            connection,
            tenant_id: options.tenant()?,
            build_id: arguments.build_id.clone(),
            show,
            reconnect_for: arguments.reconnect.reconnect_for,
            next_sequence: arguments.from_sequence,
        };
        let build = follower.run().await?;
        return match build.state() {
            BuildState::Completed => Ok(()),
            // Its last line says why.
            _ => Err(Failure::new(Exit::BuildEnded, "")),
        };
    }
    let request = StreamBuildLogsRequest {
        build_id: arguments.build_id.clone(),
        tenant_id: options.tenant()?,
        follow: false,
        from_sequence: arguments.from_sequence,
    };
    let lines = connection
        .client()
        .stream_build_logs(connection.request(request))
        .await;
    let mut lines = lines.map_err(|status| connection.failure(&status))?.into_inner();
    while let Some(line) = lines
        .message()
        .await
        .map_err(|status| connection.failure(&status))?
    {
        if options.json {
            print_json_line(&json("StreamBuildLogsResponse", &line)?)?;
        } else {
            show.line(&line)?;
        }
    }
    Ok(())
}

pub(super) async fn get_quotas(connection: &Connection, options: &Options) -> Result<(), Failure> {
    let request = GetTenantQuotasRequest {
        tenant_id: options.tenant()?,
    };
    let answer = connection
        .client()
        .get_tenant_quotas(connection.request(request))
        .await;
    let answer = answer.map_err(|status| connection.failure(&status))?.into_inner();
    if options.json {
        return print_json(&json("GetTenantQuotasResponse", &answer)?);
    }
    let limits = answer.current_limits.unwrap_or_default();
    let usage = answer.current_usage.unwrap_or_default();
    let row = |name: &str, used: String, limit: String| [name.to_owned(), used, limit];
    let rows = [
        row(
            "concurrent builds",
            usage.active_builds.to_string(),
            limits.max_concurrent_builds.to_string(),
        ),
        row("builds waiting", usage.builds_queued.to_string(), String::new()),
        row(
            "builds today",
            usage.daily_builds_used.to_string(),
            limits.max_daily_builds.to_string(),
        ),
        row(
            "completed today",
            usage.builds_completed_today.to_string(),
            String::new(),
        ),
        row(
            "failed today",
            usage.builds_failed_today.to_string(),
            String::new(),
        ),
        row(
            "storage",
            format!("{} bytes", usage.storage_bytes_used),
            bytes(limits.max_storage_bytes),
        ),
        row(
            "compute minutes today",
            usage.compute_minutes_used.to_string(),
            String::new(),
        ),
        row("memory of a build", String::new(), bytes(limits.max_memory_bytes)),
        row(
            "cores of a build",
            String::new(),
            limits.max_cpu_cores.to_string(),
        ),
        row("disk of a build", String::new(), bytes(limits.max_disk_bytes)),
        row(
            "time of a build",
            String::new(),
            format!("{} s", limits.timeout_seconds),
        ),
        row("registries", String::new(), limits.allowed_registries.join(", ")),
    ];
    print(&table(["QUOTA", "USED", "LIMIT"], &rows))?;
    for violation in answer.violations {
        note(&format!(
            "used up: {}: {}",
            super::output::printable(&violation.quota_type),
            super::output::printable(&violation.message)
        ));
    }
    Ok(())
}

pub(super) async fn get_stats(
    connection: &Connection,
    options: &Options,
    arguments: &StatsArguments,
) -> Result<(), Failure> {
    let start = match arguments.since {
        Some(since) => {
            let moment = SystemTime::now()
                .checked_sub(since)
                .ok_or_else(|| Failure::new(Exit::Usage, "--since: expected less than the time there is"))?;
            Some(Timestamp::from(moment))
        }
        None => arguments.start,
    };
    let request = GetBuildStatsRequest {
        tenant_id: options.tenant()?,
        start_time: start,
        end_time: arguments.end,
    };
    let answer = connection
        .client()
        .get_build_stats(connection.request(request))
        .await;
    let answer = answer.map_err(|status| connection.failure(&status))?.into_inner();
    if options.json {
        return print_json(&json("GetBuildStatsResponse", &answer)?);
    }
    print(&record(&[
        ("builds", answer.total_builds.to_string()),
        ("completed", answer.successful_builds.to_string()),
        ("failed", answer.failed_builds.to_string()),
        ("average time", seconds(answer.avg_build_time_ms)),
        ("storage", bytes(answer.total_storage_bytes)),
        ("compute minutes", answer.total_compute_minutes.to_string()),
    ]))?;
    if !answer.recent_builds.is_empty() {
        print("")?;
        print(&builds_table(&answer.recent_builds))?;
    }
    Ok(())
}
