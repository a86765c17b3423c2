//! The page of all settings, `docs/operations/configuration.md`, from the table itself.

use super::{
    setting::{Effect, Setting},
    settings::SETTINGS,
};

/// The page's headings, each with the setting that its table begins with and what is said before it.
const SECTIONS: [(&str, &str, &str); 10] = [
    ("Service port", "PORT", ""),
    ("Builds", "MAX_CONCURRENT_BUILDS", ""),
    (
        "Storage",
        "STORAGE_BACKEND",
        "The settings of a bucket are refused with another backend than theirs.",
    ),
    ("Registries", "DOCKER_REGISTRY_AUTH", ""),
    (
        "Tenants",
        "TENANT_ISOLATION_ENABLED",
        "`TENANT_DEFAULT_*` are the figures of the default tier; the other tiers have fixed ones.",
    ),
    ("State", "DATABASE_DATA_DIR", ""),
    ("assetmanagerd", "ASSETMANAGER_ENABLED", ""),
    (
        "Callers and TLS",
        "AUTH_MODE",
        "See [tls.md](tls.md). `builderd-cli` reads `TLS_*` and `SPIFFE_SOCKET` as well.",
    ),
    ("Logs and telemetry", "LOG_LEVEL", ""),
    (
        "builderd-cli",
        "SERVER_ADDRESS",
        "Read by the remote client only: the service accepts them and does nothing with them. The client's flags are in \
         `builderd-cli --help`.",
    ),
];

const HEAD: &str = "\
# Configuration

<!-- Written by `builderd config --markdown` from the table in crates/builderd/src/config/settings.rs, and checked by a
test: change the table, not this page. -->

Every setting is a variable and a flag of `builderd serve`: `UNKEY_BUILDERD_BUILD_TIMEOUT=20m` is `--build-timeout 20m`. A flag
goes before a variable, a variable before the default; `--dev` has defaults of its own. A variable that is exported but empty is not
set. A variable with the prefix that is not listed here is refused, and so is a value of another form: the error names variable, value and
expected form, all errors are shown at once, no port has been opened, and the exit code is 64.

What is set for a mode that is not chosen (`SPIFFE_SOCKET` without `TLS_MODE=spiffe`, a bucket's name with another backend) is refused in the
same way. What is set beside something that is switched off (`OTEL_ENDPOINT` with `OTEL_ENABLED=false`) is kept for the day on which it is
switched on: the start warns of it by name, and so does `builderd config`. A value that is the default anyway is neither.

Durations are spelt as in Go: `15m`, `1h30m`, `1.5h`, `250ms`. `_GB` are gibibytes (2^30 bytes). Relative paths are taken from the working
directory of the start.

`builderd config`, with the flags and the environment of the service, prints what would hold and where each value was said (`--json` for
programs), and refuses what `builderd serve` would refuse; secrets are shown as `***`.
";

/// The whole page.
#[must_use]
pub fn settings_reference() -> String {
    let mut page = HEAD.to_owned();
    let starts: Vec<_> = SECTIONS.iter().map(|(_, first, _)| position(first)).collect();
    for (index, (title, _, remark)) in SECTIONS.iter().enumerate() {
        let end = starts.get(index + 1).copied().unwrap_or(SETTINGS.len());
        page.push_str(&["\n## ", title, "\n\n"].concat());
        if !remark.is_empty() {
            page.push_str(&[remark, "\n\n"].concat());
        }
        page.push_str("| variable | default | value | meaning |\n|---|---|---|---|\n");
        let rows = SETTINGS.get(starts[index]..end).unwrap_or_default();
        page.extend(rows.iter().map(row));
    }
    page
}

/// Where a section begins. A name that is gone begins none, and the test of the page says so.
fn position(name: &str) -> usize {
    let found = SETTINGS.iter().position(|setting| setting.name == name);
    found.unwrap_or(SETTINGS.len())
}

fn row(setting: &Setting) -> String {
    let code = |value: &str| match value {
        "" => "–".to_owned(),
        value => format!("`{value}`"),
    };
    let default = match setting.development {
        None => code(setting.default),
        Some(development) => format!("{}; with `--dev` {}", code(setting.default), code(development)),
    };
    let mut meaning = setting.help.to_owned();
    if let Effect::NotYet(reason) = setting.effect {
        meaning.push_str(". **Refused unless it is the default:** ");
        meaning.push_str(reason);
    }
    if setting.secret {
        meaning.push_str(". Secret");
    }
    format!(
        "| `{}` | {default} | {} | {} |\n",
        setting.variable(),
        setting.form.expected().replace('|', "\\|"),
        meaning.replace('|', "\\|")
    )
}
