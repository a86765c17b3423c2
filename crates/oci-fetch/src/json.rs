//! JSON from strangers: no duplicate keys, so that no two readers of a signed or scanned document can see two images.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::error::{FetchError, FetchErrorKind};

/// Parses a document after a pass that refuses a repeated key in any object at any depth.
///
/// Nesting is bounded by serde_json (128 levels), the size by the caller.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, FetchError> {
    // serde would take a list for a struct, field by field.
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(FetchError::protocol(format!("{what} is not a JSON object")));
    }
    parse_any(bytes, what)
}

/// The same for a document that is a list.
pub(crate) fn parse_list<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<Vec<T>, FetchError> {
    parse_any(bytes, what)
}

fn parse_any<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, FetchError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    NoDuplicates
        .deserialize(&mut deserializer)
        .and_then(|()| deserializer.end())
        .and_then(|()| serde_json::from_slice(bytes))
        .map_err(|error| {
            FetchError::with_source(
                FetchErrorKind::Protocol,
                format!("{what} is not valid JSON"),
                Position::of(&error),
            )
        })
}

/// Where and in which way a document is wrong, without its text: `serde_json` quotes values, and a value may be anything
/// that a hostile redirect found.
#[derive(Debug)]
struct Position {
    line: usize,
    column: usize,
    category: &'static str,
}

impl Position {
    fn of(error: &serde_json::Error) -> Self {
        let category = match error.classify() {
            serde_json::error::Category::Io => "read error",
            serde_json::error::Category::Syntax => "syntax error",
            serde_json::error::Category::Data => "unexpected or repeated field",
            serde_json::error::Category::Eof => "unexpected end",
        };
        Self {
            line: error.line(),
            column: error.column(),
            category,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} at line {} column {}",
            self.category, self.line, self.column
        )
    }
}

impl std::error::Error for Position {}

#[derive(Clone, Copy)]
struct NoDuplicates;

impl<'de> DeserializeSeed<'de> for NoDuplicates {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NoDuplicates {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        while sequence.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if !seen.insert(key) {
                return Err(A::Error::custom("repeated key"));
            }
            map.next_value_seed(self)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn repeated_keys_are_refused_at_any_depth() {
        for (text, good) in [
            (r#"{"a":1,"b":[{"c":1},{"c":2}]}"#, true),
            (r#"{"a":1,"a":1}"#, false),
            (r#"{"a":1,"\u0061":1}"#, false),
            (r#"{"x":{"y":[{"z":1,"z":2}]}}"#, false),
            (r#"{"a":1} {"a":2}"#, false),
            (r#"{"a":1"#, false),
            ("", false),
        ] {
            assert_eq!(
                parse::<serde_json::Value>(text.as_bytes(), "test").is_ok(),
                good,
                "{text}"
            );
        }
    }

    #[test]
    fn a_deep_document_is_refused_without_overflowing_the_stack() {
        let deep = "[".repeat(1_000_000);
        assert!(parse_any::<serde_json::Value>(deep.as_bytes(), "test").is_err());
    }

    #[test]
    fn errors_do_not_quote_the_document() {
        let error = parse_list::<u64>(br#"["secret-role-credentials"]"#, "test").unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(!text.contains("secret"), "{text}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_any::<serde_json::Value>(&bytes, "test");
        }
    }
}
