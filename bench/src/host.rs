//! What was measured, and where.

use std::{fs, path::Path, process::Command, time::Duration};

use serde::{Deserialize, Serialize};

use crate::process;

/// The machine and the tree.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Host {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) has_sha: bool,
    pub(crate) memory_gib: f64,
    pub(crate) kernel: String,
    pub(crate) file_system: String,
    /// Of the last minute before the start.
    pub(crate) load: f64,
    /// With a `+` when files were changed since.
    pub(crate) commit: String,
    pub(crate) date: String,
}

impl Host {
    pub(crate) fn look(directory: &Path) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let flags = field("flags").or_else(|| field("Features")).unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = meminfo
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))
            .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
        let tree = Path::new(env!("CARGO_MANIFEST_DIR"));
        let commit = said(
            Command::new("git")
                .arg("-C")
                .arg(tree)
                .args(["rev-parse", "--short=12", "HEAD"]),
        );
        // The page itself is what this program changes.
        let changed = said(Command::new("git").arg("-C").arg(tree).args([
            "status",
            "--porcelain",
            "--",
            ":/",
            ":!/docs/benchmarks.md",
        ]));
        Self {
            cpu: field("model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            has_sha: flags.split(' ').any(|flag| flag == "sha_ni" || flag == "sha2"),
            memory_gib: kib.unwrap_or(0.0) / f64::from(1 << 20),
            kernel: said(Command::new("uname").args(["-s", "-r", "-m"])),
            file_system: said(Command::new("stat").args(["-f", "-c", "%T"]).arg(directory)),
            load: load(),
            commit: if changed.is_empty() {
                commit
            } else {
                format!("{commit}+")
            },
            date: said(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"])),
        }
    }

    /// Why figures from here should not be believed, if so.
    pub(crate) fn warning(&self) -> Option<String> {
        (self.load > 0.5).then(|| {
            format!(
                "the machine was busy: its load was {:.1} before the start; take the figures as ratios at best",
                self.load
            )
        })
    }
}

fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ')
        .next()
        .and_then(|load| load.parse().ok())
        .unwrap_or(0.0)
}

fn said(command: &mut Command) -> String {
    process::output(command, Duration::from_secs(30))
        .map_or_else(|_| String::new(), |text| text.trim().to_owned())
}
