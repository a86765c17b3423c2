//! Where in a request something is wrong, and what.

use std::fmt;

/// Values are shown in errors up to so many characters.
const SHOWN_CHARACTERS: usize = 80;

/// The way from a request to one of its fields, as `config.source.docker_image.image_uri`.
#[derive(Clone, Copy, Debug)]
pub struct FieldPath<'a> {
    parent: Option<&'a Self>,
    name: &'a str,
}

impl<'a> FieldPath<'a> {
    /// A field of the request itself.
    #[must_use]
    pub const fn root(name: &'a str) -> Self {
        Self { parent: None, name }
    }

    /// A field of the message at this path.
    #[must_use]
    pub const fn field(&'a self, name: &'a str) -> Self {
        Self {
            parent: Some(self),
            name,
        }
    }

    /// The value there is not one of those that are allowed. `expected` completes "expected …"; `found` is shown
    /// shortened, and must not be a secret.
    pub fn invalid(&self, expected: impl fmt::Display, found: impl fmt::Display) -> FieldError {
        FieldError::Invalid {
            field: self.to_string(),
            message: format!("expected {expected}, got {}", shortened(&found.to_string())),
        }
    }

    /// The field has to be there.
    pub fn required(&self, expected: impl fmt::Display) -> FieldError {
        FieldError::Invalid {
            field: self.to_string(),
            message: format!("required: expected {expected}"),
        }
    }

    /// The field asks for something that this version does not do.
    pub fn unimplemented(&self, reason: impl fmt::Display) -> FieldError {
        FieldError::Unimplemented {
            field: self.to_string(),
            message: reason.to_string(),
        }
    }

    /// Text without control characters, of at most `max_bytes` bytes.
    ///
    /// # Errors
    /// [`FieldError::Invalid`].
    pub fn text(&self, value: String, max_bytes: usize) -> Result<String, FieldError> {
        if value.len() > max_bytes {
            return Err(self.invalid(
                format_args!("at most {max_bytes} bytes"),
                format_args!("{} bytes", value.len()),
            ));
        }
        if value.chars().any(char::is_control) {
            return Err(self.invalid("text without control characters", quoted(&value)));
        }
        Ok(value)
    }

    /// Text that ends up as an argument or variable of a process: anything without a zero byte.
    ///
    /// # Errors
    /// [`FieldError::Invalid`].
    pub fn argument(&self, value: String) -> Result<String, FieldError> {
        if value.contains('\0') {
            return Err(self.invalid("text without zero bytes", quoted(&value)));
        }
        Ok(value)
    }

    /// A figure, of which zero means "not given".
    ///
    /// # Errors
    /// [`FieldError::Invalid`] for a negative one.
    pub fn positive<T, U>(&self, value: T) -> Result<Option<U>, FieldError>
    where
        T: Copy + fmt::Display,
        U: TryFrom<T> + Default + PartialEq,
    {
        let value = U::try_from(value).map_err(|_| self.invalid("0 (not given) or more", value))?;
        Ok((value != U::default()).then_some(value))
    }
}

impl fmt::Display for FieldPath<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            write!(formatter, "{parent}.")?;
        }
        formatter.write_str(self.name)
    }
}

/// Why a request cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The field is missing or has a value that is not allowed.
    #[error("{field}: {message}")]
    Invalid {
        /// The path of the field.
        field: String,
        /// What was expected and what was found.
        message: String,
    },
    /// The field asks for something that this version does not do.
    #[error("{field}: {message}")]
    Unimplemented {
        /// The path of the field.
        field: String,
        /// What is not done.
        message: String,
    },
}

/// The value as a quoted string, for [`FieldPath::invalid`].
pub(super) fn quoted(value: &str) -> String {
    format!("{:?}", shortened(value))
}

fn shortened(value: &str) -> String {
    match value.char_indices().nth(SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => value.to_owned(),
    }
}
