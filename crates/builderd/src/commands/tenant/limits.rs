//! The limits of a tenant's own on the command line.

use builder_core::admin::Change;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use tenant::{HostPattern, LimitOverrides, SandboxLevel, TenantRecord};

use crate::{
    config::parse_duration,
    exit::{Exit, Failure},
    size::parse_size,
};

/// The limits that can be given back to the tier, by the names of their options.
const NAMES: [&str; 11] = [
    "concurrent-builds",
    "daily-builds",
    "timeout",
    "memory",
    "cpu-cores",
    "disk",
    "storage",
    "registries",
    "git-hosts",
    "external-network",
    "sandbox-level",
];

/// What is to be changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Edit {
    set: LimitOverrides,
    weight: Option<u32>,
    reset: Vec<String>,
}

/// Adds an option for each limit.
pub(super) fn with_options(command: Command) -> Command {
    let option = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    command
        .arg(
            option(
                "concurrent-builds",
                "N",
                "Builds that run at the same time; 0 keeps all waiting",
            )
            .value_parser(value_parser!(u32)),
        )
        .arg(
            option(
                "daily-builds",
                "N",
                "Builds that start on one UTC day; 0 refuses all",
            )
            .value_parser(value_parser!(u32)),
        )
        .arg(option("timeout", "DURATION", "Time for a build, as 20m").value_parser(parse_seconds))
        .arg(option("memory", "SIZE", "Memory of one build, as 4GiB").value_parser(parse_positive_size))
        .arg(option("cpu-cores", "N", "CPU cores of one build").value_parser(value_parser!(u32).range(1..)))
        .arg(option("disk", "SIZE", "Disk of one build, as 20GiB").value_parser(parse_positive_size))
        .arg(
            option(
                "storage",
                "SIZE",
                "All images that are kept; 0 refuses all builds",
            )
            .value_parser(parse_size),
        )
        .arg(
            option(
                "registries",
                "HOSTS",
                "Where images may be pulled from, with commas; \"\" for nowhere",
            )
            .value_parser(parse_hosts),
        )
        .arg(
            option(
                "git-hosts",
                "HOSTS",
                "Where repositories may be cloned from, with commas; \"\" for nowhere",
            )
            .value_parser(parse_hosts),
        )
        .arg(
            option(
                "external-network",
                "BOOL",
                "Whether commands in a build may reach the network",
            )
            .value_parser(value_parser!(bool)),
        )
        .arg(
            option("sandbox-level", "N", "How strong the box is at least: 1, 2 or 3")
                .value_parser(value_parser!(i32).range(1..=3)),
        )
        .arg(
            option(
                "weight",
                "N",
                "Share of a contended machine, 1 to 1000; set-tier sets it to the tier's",
            )
            .value_parser(value_parser!(u32).range(1..=1000)),
        )
        .arg(
            Arg::new("reset")
                .long("reset")
                .value_name("LIMIT")
                .action(ArgAction::Append)
                .value_delimiter(',')
                .value_parser(NAMES.iter().copied().chain(["all"]).collect::<Vec<_>>())
                .help("Give a limit back to the tier, or all of them; may be repeated"),
        )
}

impl Edit {
    /// Reads the options.
    pub(super) fn read(matches: &ArgMatches) -> Result<Self, Failure> {
        let level = matches.get_one::<i32>("sandbox-level").copied().unwrap_or(0);
        let edit = Self {
            set: LimitOverrides {
                concurrent_builds: matches.get_one("concurrent-builds").copied(),
                daily_builds: matches.get_one("daily-builds").copied(),
                timeout_seconds: matches.get_one("timeout").copied(),
                memory_bytes: matches.get_one("memory").copied(),
                cpu_cores: matches.get_one("cpu-cores").copied(),
                disk_bytes: matches.get_one("disk").copied(),
                storage_bytes: matches.get_one("storage").copied(),
                registries: matches
                    .get_one::<Hosts>("registries")
                    .map(|hosts| hosts.0.clone()),
                git_hosts: matches.get_one::<Hosts>("git-hosts").map(|hosts| hosts.0.clone()),
                external_network: matches.get_one("external-network").copied(),
                sandbox_level: SandboxLevel::from_number(level)
                    .map_err(|error| Failure::new(Exit::Usage, error.to_string()))?,
            },
            weight: matches.get_one("weight").copied(),
            reset: matches
                .get_many::<String>("reset")
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
        };
        if edit == Self::default() {
            let message = "nothing is to be changed: name a limit, or --reset one; see `builderd tenant set-limits --help`";
            return Err(Failure::new(Exit::Usage, message));
        }
        Ok(edit)
    }

    /// What it makes of a record.
    pub(super) fn changes(&self, record: &TenantRecord) -> Vec<Change> {
        let mut changes = Vec::new();
        let limits = self.over(&record.limits);
        if limits != record.limits || self.weight.is_none() {
            changes.push(Change::Limits(limits));
        }
        changes.extend(self.weight.map(Change::Weight));
        changes
    }

    fn over(&self, present: &LimitOverrides) -> LimitOverrides {
        let set = self.set.clone();
        let kept = |name: &str| !self.reset.iter().any(|reset| reset == name || reset == "all");
        let LimitOverrides {
            concurrent_builds,
            daily_builds,
            timeout_seconds,
            memory_bytes,
            cpu_cores,
            disk_bytes,
            storage_bytes,
            registries,
            git_hosts,
            external_network,
            sandbox_level,
        } = present.clone();
        LimitOverrides {
            concurrent_builds: set
                .concurrent_builds
                .or(concurrent_builds.filter(|_| kept("concurrent-builds"))),
            daily_builds: set.daily_builds.or(daily_builds.filter(|_| kept("daily-builds"))),
            timeout_seconds: set
                .timeout_seconds
                .or(timeout_seconds.filter(|_| kept("timeout"))),
            memory_bytes: set.memory_bytes.or(memory_bytes.filter(|_| kept("memory"))),
            cpu_cores: set.cpu_cores.or(cpu_cores.filter(|_| kept("cpu-cores"))),
            disk_bytes: set.disk_bytes.or(disk_bytes.filter(|_| kept("disk"))),
            storage_bytes: set.storage_bytes.or(storage_bytes.filter(|_| kept("storage"))),
            registries: set.registries.or(registries.filter(|_| kept("registries"))),
            git_hosts: set.git_hosts.or(git_hosts.filter(|_| kept("git-hosts"))),
            external_network: set
                .external_network
                .or(external_network.filter(|_| kept("external-network"))),
            sandbox_level: set
                .sandbox_level
                .or(sandbox_level.filter(|_| kept("sandbox-level"))),
        }
    }
}

/// In one line for people; `-` for none.
pub(super) fn described(limits: &LimitOverrides) -> String {
    let value = serde_json::to_value(limits).unwrap_or_default();
    let parts: Vec<String> = value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| format!("{name}={}", value.to_string().replace('"', "")))
        .collect();
    match parts.as_slice() {
        [] => "-".to_owned(),
        parts => parts.join(" "),
    }
}

/// A list that may be empty, as one value of an option.
#[derive(Clone, Debug)]
struct Hosts(Vec<HostPattern>);

fn parse_hosts(text: &str) -> Result<Hosts, String> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    let hosts: Result<_, tenant::InvalidHostPattern> = names.map(str::parse).collect();
    hosts.map(Hosts).map_err(|error| error.to_string())
}

fn parse_seconds(text: &str) -> Result<u32, String> {
    let seconds = parse_duration(text).and_then(|duration| u32::try_from(duration.as_secs()).ok());
    seconds
        .filter(|seconds| *seconds > 0)
        .ok_or_else(|| "expected a duration of a second at least, as 20m".to_owned())
}

fn parse_positive_size(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        0 => Err("expected more than 0".to_owned()),
        // What the database can hold.
        size if i64::try_from(size).is_err() => Err("more than there are bytes".to_owned()),
        size => Ok(size),
    }
}
