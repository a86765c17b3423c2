//! Settings of the daemon: from variables, from flags, checked before a port opens.
//!
//! Every setting stands once, in [`SETTINGS`]: its variable is `UNKEY_BUILDERD_` and its name, its flag `--` and the
//! name in lower case with dashes. A flag goes before a variable, a variable before the default; an empty variable is
//! an unset one. A setting that this version does nothing with may only have the value it has by default: anything
//! else is refused at the start, and so is a variable with the prefix that does not exist. One that is for another mode
//! is refused as well, and one that belongs to something that is switched off is named ([`Config::idle`]).

mod daemon;
mod duration;
mod idle;
mod reference;
mod security;
mod setting;
mod settings;
mod show;
mod storage;
mod values;

pub use daemon::{Config, LogConfig, LogFormat};
pub use duration::{format_duration, parse_duration};
pub use idle::IdleSetting;
pub use reference::settings_reference;
pub use security::AuthenticationConfig;
pub use setting::{Effect, Form, Setting, VARIABLE_PREFIX};
pub use settings::SETTINGS;
pub use show::{EffectiveSetting, effective_settings, settings_json, settings_text};
pub use values::{ConfigError, Source, Values};
