//! The effective settings, for people and for programs.

use serde_json::{Value, json};

use super::{
    setting::{Effect, Form, Setting},
    settings::SETTINGS,
    values::{Source, Values, parse_bool},
};

/// Stands for a secret that is set.
const MASK: &str = "***";

/// One setting with the value that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectiveSetting {
    /// The variable.
    pub variable: String,
    /// The flag, with its dashes.
    pub flag: String,
    /// The value as it is understood: paths from the root on, `true` for `1`. `***` for a secret that is set; empty for
    /// nothing.
    pub value: String,
    /// Where it was said.
    pub source: Source,
}

/// The settings of the daemon, in the order of [`SETTINGS`]. Those of the remote client are none of its.
#[must_use]
pub fn effective_settings(values: &Values) -> Vec<EffectiveSetting> {
    SETTINGS
        .iter()
        .filter(|setting| !matches!(setting.effect, Effect::Client))
        .map(|setting| EffectiveSetting {
            variable: setting.variable(),
            flag: format!("--{}", setting.flag()),
            value: shown(values, setting),
            source: values.source(setting.name),
        })
        .collect()
}

/// As lines `VARIABLE=VALUE  # source`, which a shell reads as they are meant, secrets apart.
#[must_use]
pub fn settings_text(settings: &[EffectiveSetting]) -> String {
    let lines: Vec<_> = settings
        .iter()
        .map(|setting| {
            (
                format!("{}={}", setting.variable, quoted(&setting.value)),
                setting,
            )
        })
        .collect();
    let width = lines
        .iter()
        .map(|(line, _)| line.chars().count())
        .max()
        .unwrap_or(0);
    lines
        .iter()
        .map(|(line, setting)| {
            let padding = " ".repeat(width - line.chars().count());
            format!("{line}{padding}  # {}\n", setting.source.words(&setting.flag))
        })
        .collect()
}

/// As JSON: an array of objects with `variable`, `flag`, `value` and `source`.
#[must_use]
pub fn settings_json(settings: &[EffectiveSetting]) -> Value {
    settings
        .iter()
        .map(|setting| {
            json!({
                "variable": setting.variable,
                "flag": setting.flag,
                "value": setting.value,
                "source": setting.source.word(),
            })
        })
        .collect()
}

impl Source {
    /// One word: `flag`, `environment`, `development` or `default`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Flag => "flag",
            Self::Variable => "environment",
            Self::Development => "development",
            Self::Default => "default",
        }
    }

    fn words(self, flag: &str) -> String {
        match self {
            Self::Flag => flag.to_owned(),
            Self::Development => "default of --dev".to_owned(),
            Self::Variable | Self::Default => self.word().to_owned(),
        }
    }
}

fn shown(values: &Values, setting: &Setting) -> String {
    let value = values.text(setting.name);
    if value.is_empty() {
        return String::new();
    }
    if setting.secret {
        return MASK.to_owned();
    }
    match setting.form {
        // The agent's socket may have its scheme before it.
        Form::Path if !value.starts_with("unix:") => values.path(setting.name).to_string_lossy().into_owned(),
        Form::Bool => parse_bool(value).map_or_else(|| value.to_owned(), |value| value.to_string()),
        Form::List => values.list(setting.name).join(","),
        _ => value.to_owned(),
    }
}

/// In quotes where a shell would see more than one word, or something of its own.
fn quoted(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:,=@%+".contains(&byte);
    if value.bytes().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_what_was_meant() {
        for (value, expected) in [
            ("", ""),
            ("/opt/builderd", "/opt/builderd"),
            ("info,builder_core=debug", "info,builder_core=debug"),
            ("a b", "'a b'"),
            ("***", "'***'"),
            ("$(reboot)", "'$(reboot)'"),
            ("it's", r"'it'\''s'"),
        ] {
            assert_eq!(quoted(value), expected);
        }
    }
}
