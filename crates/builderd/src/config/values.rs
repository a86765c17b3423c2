//! What every setting is, and where it was said.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    duration::parse_duration,
    setting::{Effect, Form, Setting, VARIABLE_PREFIX},
    settings::SETTINGS,
};

/// Directories that `--dev` puts below the state directory.
const STATE_DIRECTORIES: [(&str, &str); 4] = [
    ("DATABASE_DATA_DIR", "data"),
    ("ROOTFS_OUTPUT_DIR", "rootfs"),
    ("SCRATCH_DIR", "scratch"),
    ("WORKSPACE_DIR", "workspace"),
];

/// Where a value was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// On the command line.
    Flag,
    /// In the environment.
    Variable,
    /// Nowhere: `--dev` brings it.
    Development,
    /// Nowhere.
    Default,
}

/// A setting that cannot be what was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The variable, as `UNKEY_BUILDERD_PORT`.
    pub variable: String,
    /// Whether the value came from the flag and not from the variable.
    pub by_flag: bool,
    /// What was said; `None` when it is a secret or was not said at all.
    pub value: Option<String>,
    /// What is wrong, and what is expected or can be done.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.variable)?;
        if let Some(value) = &self.value {
            write!(formatter, "={value:?}")?;
        }
        if self.by_flag {
            formatter.write_str(" (from the command line)")?;
        }
        write!(formatter, ": {}", self.problem)
    }
}

impl std::error::Error for ConfigError {}

/// The value of every setting in [`SETTINGS`], each in its [`Form`].
#[derive(Clone)]
pub struct Values {
    values: BTreeMap<&'static str, (String, Source)>,
}

impl Values {
    /// Puts flags before variables before defaults. `flag` gives what was said on the command line for a setting;
    /// with `state_directory` the defaults are those of `--dev`.
    ///
    /// # Errors
    /// All that is wrong at once: values that do not have the setting's form, values of settings that do nothing yet,
    /// and variables with our prefix that name no setting.
    pub fn collect(
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        flag: impl Fn(&Setting) -> Option<String>,
        state_directory: Option<&Path>,
    ) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let variables = known_variables(environment, &mut errors);
        let mut values = BTreeMap::new();
        for setting in SETTINGS {
            let said = flag(setting)
                .map(|value| (value, Source::Flag))
                .or_else(|| Some((variables.get(setting.name)?.clone(), Source::Variable)));
            let (value, source) = said.unwrap_or_else(|| default(setting, state_directory));
            if let Some(problem) = problem(setting, &value, source) {
                errors.push(error(setting, &value, source, problem));
            }
            values.insert(setting.name, (value, source));
        }
        if errors.is_empty() {
            Ok(Self { values })
        } else {
            Err(errors)
        }
    }

    /// Where a setting's value was said.
    ///
    /// # Panics
    /// For a name that is not in [`SETTINGS`].
    #[must_use]
    pub fn source(&self, name: &str) -> Source {
        self.entry(name).1
    }

    /// An error about a setting that has a good form and cannot be had.
    ///
    /// # Panics
    /// For a name that is not in [`SETTINGS`].
    #[must_use]
    pub fn refuse(&self, name: &str, problem: impl Into<String>) -> ConfigError {
        let (value, source) = self.entry(name);
        let setting = SETTINGS.iter().find(|setting| setting.name == name);
        error(
            setting.expect("entries exist for settings only"),
            value,
            *source,
            problem.into(),
        )
    }

    /// The variable of a setting that was said to be something else than it is by default; `None` where it was not.
    pub(super) fn changed(&self, name: &str) -> Option<String> {
        let (value, source) = self.entry(name);
        let setting = SETTINGS.iter().find(|setting| setting.name == name)?;
        changes(setting, value, *source).then(|| setting.variable())
    }

    pub(crate) fn text(&self, name: &str) -> &str {
        &self.entry(name).0
    }

    /// The directories that the service writes to, each with the name of its setting.
    #[must_use]
    pub fn directories(&self) -> [(&'static str, PathBuf); 4] {
        [
            "DATABASE_DATA_DIR",
            "ROOTFS_OUTPUT_DIR",
            "WORKSPACE_DIR",
            "SCRATCH_DIR",
        ]
        .map(|name| (name, self.path(name)))
    }

    /// The table of prices, when there is one.
    #[must_use]
    pub fn prices_file(&self) -> Option<PathBuf> {
        (!self.text("PRICES_FILE").is_empty()).then(|| self.path("PRICES_FILE"))
    }

    /// The tier of tenants that are not known.
    #[must_use]
    pub fn default_tier(&self) -> tenant::Tier {
        self.text("TENANT_DEFAULT_TIER")
            .parse()
            .expect("the form's words are tiers")
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        parse_bool(self.text(name)).expect("checked when collected")
    }

    pub(super) fn integer<T: TryFrom<u64>>(&self, name: &str) -> T {
        let value = self
            .text(name)
            .parse()
            .ok()
            .and_then(|value: u64| T::try_from(value).ok());
        value.expect("the form's bounds are within the type")
    }

    /// Gibibytes as bytes.
    pub(super) fn gibibytes(&self, name: &str) -> u64 {
        self.integer::<u64>(name) << 30
    }

    pub(super) fn duration(&self, name: &str) -> Duration {
        parse_duration(self.text(name)).expect("checked when collected")
    }

    /// A path from the root on: it is also told to callers, who run elsewhere.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        let path = Path::new(self.text(name));
        std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
    }

    pub(super) fn address(&self, name: &str) -> IpAddr {
        parse_address(self.text(name)).expect("checked when collected")
    }

    pub(super) fn list(&self, name: &str) -> Vec<String> {
        let names = self.text(name).split(',').map(str::trim);
        names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }

    fn entry(&self, name: &str) -> &(String, Source) {
        self.values
            .get(name)
            .expect("every setting has an entry, and only settings are asked for")
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = SETTINGS.iter().map(|setting| {
            let (value, source) = self.entry(setting.name);
            let value = if setting.secret && !value.is_empty() {
                "…"
            } else {
                value
            };
            (setting.name, (value.to_owned(), source))
        });
        formatter.debug_map().entries(shown).finish()
    }
}

/// The variables of ours by the names of their settings; empty ones are unset.
fn known_variables(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    errors: &mut Vec<ConfigError>,
) -> BTreeMap<&'static str, String> {
    let mut variables = BTreeMap::new();
    for (variable, value) in environment {
        let Some(variable) = variable.to_str() else {
            continue;
        };
        let Some(name) = variable.strip_prefix(VARIABLE_PREFIX) else {
            continue;
        };
        if value.is_empty() {
            continue;
        }
        let Some(setting) = SETTINGS.iter().find(|setting| setting.name == name) else {
            let problem = match nearest(name) {
                Some(setting) => format!("there is no such setting; did you mean {}?", setting.variable()),
                None => "there is no such setting; `builderd serve --help` lists them".to_owned(),
            };
            // What it holds may be a secret with a misspelt name.
            errors.push(ConfigError {
                variable: variable.to_owned(),
                by_flag: false,
                value: None,
                problem,
            });
            continue;
        };
        match value.into_string() {
            Ok(value) => {
                variables.insert(setting.name, value);
            }
            Err(_) => errors.push(ConfigError {
                variable: variable.to_owned(),
                by_flag: false,
                value: None,
                problem: format!("expected {} in UTF-8", setting.form.expected()),
            }),
        }
    }
    variables
}

fn default(setting: &Setting, state_directory: Option<&Path>) -> (String, Source) {
    let Some(state_directory) = state_directory else {
        return (setting.default.to_owned(), Source::Default);
    };
    if let Some((_, directory)) = STATE_DIRECTORIES.iter().find(|(name, _)| *name == setting.name) {
        let path = state_directory.join(directory);
        return (path.to_string_lossy().into_owned(), Source::Development);
    }
    match setting.development {
        Some(value) => (value.to_owned(), Source::Development),
        None => (setting.default.to_owned(), Source::Default),
    }
}

fn error(setting: &Setting, value: &str, source: Source, problem: String) -> ConfigError {
    ConfigError {
        variable: setting.variable(),
        by_flag: source == Source::Flag,
        value: (!setting.secret).then(|| value.to_owned()),
        problem,
    }
}

fn problem(setting: &Setting, value: &str, source: Source) -> Option<String> {
    if value.is_empty() && setting.default.is_empty() {
        return None;
    }
    if !fits(setting.form, value) {
        return Some(format!("expected {}", setting.form.expected()));
    }
    let Effect::NotYet(reason) = setting.effect else {
        return None;
    };
    if !changes(setting, value, source) {
        return None;
    }
    let way_out = match setting.default {
        "" => "leave it unset".to_owned(),
        default => format!("leave it unset or at {default}"),
    };
    Some(format!("not implemented yet: {reason}; {way_out}"))
}

/// Whether something was said, and is not what holds anyway.
fn changes(setting: &Setting, value: &str, source: Source) -> bool {
    let said = matches!(source, Source::Flag | Source::Variable);
    let defaults = [Some(setting.default), setting.development];
    let mut defaults = defaults.iter().flatten();
    said && !defaults.any(|default| same(setting.form, value, default))
}

fn fits(form: Form, value: &str) -> bool {
    match form {
        Form::Text => !value.contains('\0'),
        Form::Bool => parse_bool(value).is_some(),
        Form::Integer { min, max } => parse_integer(value).is_some_and(|value| (min..=max).contains(&value)),
        Form::Ratio => value
            .parse::<f64>()
            .is_ok_and(|value| (0.0..=1.0).contains(&value)),
        Form::Duration { zero } => parse_duration(value).is_some_and(|value| zero || !value.is_zero()),
        Form::Path => !value.is_empty() && !value.contains('\0'),
        Form::Address => parse_address(value).is_some(),
        Form::Url => {
            let rest = value
                .strip_prefix("http://")
                .or_else(|| value.strip_prefix("https://"));
            rest.is_some_and(|rest| {
                !rest.is_empty() && !rest.starts_with(['/', ':']) && !rest.contains(char::is_whitespace)
            })
        }
        Form::List => !value.contains(char::is_control),
        Form::Word(words) => words.contains(&value),
    }
}

/// Whether two values of that form mean the same: `60m` is `1h`.
fn same(form: Form, left: &str, right: &str) -> bool {
    match form {
        Form::Bool => parse_bool(left) == parse_bool(right),
        Form::Integer { .. } => parse_integer(left) == parse_integer(right),
        Form::Duration { .. } => parse_duration(left) == parse_duration(right),
        Form::Address => parse_address(left) == parse_address(right),
        Form::Ratio => left.parse::<f64>().ok() == right.parse::<f64>().ok(),
        _ => left == right,
    }
}

/// The spellings that Go's `strconv.ParseBool` takes.
pub(super) fn parse_bool(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn parse_integer(value: &str) -> Option<u64> {
    // The parser of the standard library also takes a leading `+`, which no one writes on purpose.
    value
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| value.parse().ok())?
}

fn parse_address(value: &str) -> Option<IpAddr> {
    match value {
        "localhost" => Some(IpAddr::from([127, 0, 0, 1])),
        _ => {
            let bare = value.strip_prefix('[').and_then(|value| value.strip_suffix(']'));
            bare.unwrap_or(value).parse().ok()
        }
    }
}

/// The setting whose name is most like this one, if any is.
fn nearest(name: &str) -> Option<&'static Setting> {
    let scored = SETTINGS
        .iter()
        .map(|setting| (strsim::jaro_winkler(name, setting.name), setting));
    let best = scored.max_by(|left, right| left.0.total_cmp(&right.0))?;
    (best.0 > 0.8).then_some(best.1)
}
