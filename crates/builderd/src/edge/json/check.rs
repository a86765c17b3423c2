//! What is wrong with a JSON body: said by the name of the field, and without its value.
//!
//! Values are never quoted, but for names of enums that do not exist: what stands in the wrong place may be a secret.
//! The body is walked as it is parsed, so that checking takes no memory to speak of.

use std::{cell::RefCell, collections::HashSet, fmt};

use prost_reflect::{Cardinality, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use prost_types::Timestamp;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::convert::FieldError;

/// Names that do not exist are shown up to so many characters.
const SHOWN_CHARACTERS: usize = 80;

/// How the body as a whole is called.
const BODY: &str = "body";

/// What is wrong with a body.
#[derive(Debug)]
pub(super) enum Mistake {
    /// A field.
    Field(FieldError),
    /// It is no JSON. The error says where, and no value.
    Text(serde_json::Error),
}

/// Looks for what prost-reflect would read over, or would quote in an error.
///
/// # Errors
/// The first mistake.
pub(super) fn check(descriptor: &MessageDescriptor, body: &[u8]) -> Result<(), Mistake> {
    let found = RefCell::new(None);
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = Value {
        shape: Shape::Message(descriptor.clone()),
        path: "",
        found: &found,
    };
    let walked = value
        .deserialize(&mut deserializer)
        .and_then(|()| deserializer.end());
    walked.map_err(|error| match found.take() {
        Some(mistake) => Mistake::Field(mistake),
        None => Mistake::Text(error),
    })
}

/// What a value has to look like.
#[derive(Clone, Debug)]
enum Shape {
    Message(MessageDescriptor),
    List(FieldDescriptor),
    /// With the field that describes its values.
    Map(FieldDescriptor),
    Enum(EnumDescriptor),
    Text,
    Bool,
    Integer {
        min: i128,
        max: i128,
    },
    Timestamp,
    /// Left to prost-reflect: no message of ours has one.
    Other,
}

impl Shape {
    fn of_field(field: &FieldDescriptor) -> Self {
        match field.kind() {
            Kind::Message(entry) if field.is_map() => Self::Map(entry.map_entry_value_field()),
            _ if field.cardinality() == Cardinality::Repeated => Self::List(field.clone()),
            _ => Self::of_element(field),
        }
    }

    fn of_element(field: &FieldDescriptor) -> Self {
        let integer = |min: i128, max: i128| Self::Integer { min, max };
        match field.kind() {
            Kind::Message(message) if message.full_name() == "google.protobuf.Timestamp" => Self::Timestamp,
            // They have a JSON form of their own.
            Kind::Message(message) if message.package_name() == "google.protobuf" => Self::Other,
            Kind::Message(message) => Self::Message(message),
            Kind::Enum(descriptor) => Self::Enum(descriptor),
            Kind::String => Self::Text,
            Kind::Bool => Self::Bool,
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => integer(i32::MIN.into(), i32::MAX.into()),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => integer(i64::MIN.into(), i64::MAX.into()),
            Kind::Uint32 | Kind::Fixed32 => integer(0, u32::MAX.into()),
            Kind::Uint64 | Kind::Fixed64 => integer(0, u64::MAX.into()),
            Kind::Bytes | Kind::Float | Kind::Double => Self::Other,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(_) | Self::Map(_) => formatter.write_str("a JSON object"),
            Self::List(_) => formatter.write_str("a JSON array"),
            Self::Enum(_) => formatter.write_str("the name or number of an enum value"),
            Self::Text => formatter.write_str("a JSON string"),
            Self::Bool => formatter.write_str("true or false"),
            Self::Integer { min, max } => write!(formatter, "a whole number from {min} to {max}"),
            Self::Timestamp => formatter.write_str("a moment, as \"2026-01-31T00:00:00Z\""),
            Self::Other => formatter.write_str("another value"),
        }
    }
}

/// Expects a value of a shape.
struct Value<'a> {
    shape: Shape,
    /// Empty for the body as a whole.
    path: &'a str,
    found: &'a RefCell<Option<FieldError>>,
}

impl Value<'_> {
    fn refuse<E: Error>(&self, got: &str) -> E {
        self.refuse_at(self.path, format!("expected {}, got {got}", self.shape))
    }

    fn refuse_at<E: Error>(&self, path: &str, message: String) -> E {
        let field = if path.is_empty() { BODY } else { path };
        *self.found.borrow_mut() = Some(FieldError::Invalid {
            field: field.to_owned(),
            message,
        });
        E::custom("refused")
    }

    fn integer<E: Error>(&self, number: Option<i128>) -> Result<(), E> {
        let (min, max) = match self.shape {
            Shape::Integer { min, max } => (min, max),
            Shape::Enum(_) => (i32::MIN.into(), i32::MAX.into()),
            _ => return Err(self.refuse("a number")),
        };
        match number {
            Some(number) if (min..=max).contains(&number) => Ok(()),
            _ => Err(self.refuse("another number")),
        }
    }
}

/// A number with a fraction of zero, as `12.0` or `1e3`.
fn whole(number: f64) -> Option<i128> {
    // Beyond, no kind of integer has it.
    let fits = number.fract() == 0.0 && number.abs() < 1e20;
    #[expect(clippy::cast_possible_truncation, reason = "whole, and far within the range")]
    fits.then_some(number as i128)
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.shape {
            Shape::Other => deserializer.deserialize_ignored_any(IgnoredAny).map(drop),
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.shape)
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        // `null` is "not given" for a field, and nothing at all for a body or an element.
        match self.path {
            "" => Err(self.refuse("null")),
            _ => Ok(()),
        }
    }

    fn visit_bool<E: Error>(self, _value: bool) -> Result<(), E> {
        match self.shape {
            Shape::Bool => Ok(()),
            _ => Err(self.refuse("a boolean")),
        }
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<(), E> {
        self.integer(Some(number.into()))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        self.integer(Some(number.into()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<(), E> {
        self.integer(whole(number))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        match &self.shape {
            Shape::Text => Ok(()),
            Shape::Integer { .. } => {
                let number = text.parse().ok().or_else(|| whole(text.parse().ok()?));
                match number {
                    Some(number) => self.integer(Some(number)),
                    None => Err(self.refuse("other text")),
                }
            }
            Shape::Timestamp if text.parse::<Timestamp>().is_ok() => Ok(()),
            Shape::Enum(descriptor) => {
                if descriptor.get_value_by_name(text).is_some() {
                    return Ok(());
                }
                let names: Vec<_> = descriptor.values().map(|value| value.name().to_owned()).collect();
                let got: String = text.chars().take(SHOWN_CHARACTERS).collect();
                let message = format!("expected one of {}, got {got:?}", names.join(", "));
                Err(self.refuse_at(self.path, message))
            }
            _ => Err(self.refuse("text")),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        let Shape::List(field) = &self.shape else {
            return Err(self.refuse("an array"));
        };
        let element = || Value {
            shape: Shape::of_element(field),
            path: self.path,
            found: self.found,
        };
        while sequence.next_element_seed(element())?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let join = |name: &str| match self.path {
            "" => name.to_owned(),
            parent => format!("{parent}.{name}"),
        };
        match &self.shape {
            Shape::Message(descriptor) => {
                let mut seen = HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    let field = descriptor
                        .get_field_by_json_name(&name)
                        .or_else(|| descriptor.get_field_by_name(&name));
                    let Some(field) = field else {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    };
                    let path = join(field.name());
                    if !seen.insert(field.number()) {
                        return Err(self.refuse_at(&path, "expected once, got twice".to_owned()));
                    }
                    map.next_value_seed(Value {
                        shape: Shape::of_field(&field),
                        path: &path,
                        found: self.found,
                    })?;
                }
                Ok(())
            }
            Shape::Map(value) => {
                let mut seen = HashSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    let shown: String = key.chars().take(SHOWN_CHARACTERS).collect();
                    let path = join(&shown);
                    if !seen.insert(key) {
                        return Err(self.refuse_at(&path, "expected once, got twice".to_owned()));
                    }
                    map.next_value_seed(Value {
                        shape: Shape::of_element(value),
                        path: &path,
                        found: self.found,
                    })?;
                }
                Ok(())
            }
            _ => Err(self.refuse("an object")),
        }
    }
}
