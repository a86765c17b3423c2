//! Messages in JSON, strictly.
//!
//! prost-reflect does the work. It reads over three mistakes that a caller would want to know of, so a body is walked
//! once beforehand, along the message's description: an enum's name that does not exist, a field given twice (in
//! one spelling or in both), and a body that is no object. Unknown fields are ignored, as the other Connect
//! implementations do.

use std::{collections::HashSet, fmt};

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{
    Cardinality, DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor,
    SerializeOptions,
};
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Encodes what a JSON body says.
///
/// # Errors
/// A message for the caller that names the field or the place in the text.
pub(super) fn decode(descriptor: &MessageDescriptor, body: &[u8]) -> Result<Bytes, String> {
    check(descriptor, body).map_err(|error| error.to_string())?;

    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let message = DynamicMessage::deserialize_with_options(descriptor.clone(), &mut deserializer, &options)
        .and_then(|message| deserializer.end().map(|()| message))
        .map_err(|error| error.to_string())?;
    Ok(Bytes::from(message.encode_to_vec()))
}

/// Renders a message as JSON: names in lowerCamelCase, 64-bit integers as strings, enums by name.
///
/// # Errors
/// When the bytes are not such a message, or hold a value that JSON cannot say.
pub(super) fn encode(descriptor: &MessageDescriptor, message: &[u8]) -> Result<Bytes, String> {
    let message = DynamicMessage::decode(descriptor.clone(), message).map_err(|error| error.to_string())?;
    let mut text = Vec::new();
    message
        .serialize_with_options(
            &mut serde_json::Serializer::new(&mut text),
            &SerializeOptions::new(),
        )
        .map_err(|error| error.to_string())?;
    Ok(Bytes::from(text))
}

fn check(descriptor: &MessageDescriptor, body: &[u8]) -> Result<(), serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let message = CheckMessage { descriptor, path: "" };
    message.deserialize(&mut deserializer)?;
    deserializer.end()
}

/// Messages with a JSON form of their own, which prost-reflect reads strictly.
fn has_own_json_form(descriptor: &MessageDescriptor) -> bool {
    descriptor.package_name() == "google.protobuf"
}

/// Expects an object that is a message.
struct CheckMessage<'a> {
    descriptor: &'a MessageDescriptor,
    path: &'a str,
}

impl<'de> DeserializeSeed<'de> for CheckMessage<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for CheckMessage<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path {
            "" => formatter.write_str("a JSON object"),
            path => write!(formatter, "{path} to be a JSON object"),
        }
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        // `null` is "not given" for a field, and nothing at all for a body.
        match self.path {
            "" => Err(E::invalid_type(serde::de::Unexpected::Unit, &self)),
            _ => Ok(()),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            let field = self
                .descriptor
                .get_field_by_json_name(&name)
                .or_else(|| self.descriptor.get_field_by_name(&name));
            let Some(field) = field else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let path = match self.path {
                "" => field.name().to_owned(),
                parent => format!("{parent}.{}", field.name()),
            };
            if !seen.insert(field.number()) {
                return Err(A::Error::custom(format_args!("{path}: expected once, got twice")));
            }
            map.next_value_seed(CheckField {
                field: &field,
                path: &path,
                inside: false,
            })?;
        }
        Ok(())
    }
}

/// Expects the value of a field, or (`inside`) one element of a repeated one or of a map.
struct CheckField<'a> {
    field: &'a FieldDescriptor,
    path: &'a str,
    inside: bool,
}

impl CheckField<'_> {
    /// What the elements of a map are.
    fn map_value(&self) -> Option<FieldDescriptor> {
        let Kind::Message(entry) = self.field.kind() else {
            return None;
        };
        (self.field.is_map() && !self.inside).then(|| entry.map_entry_value_field())
    }
}

impl<'de> DeserializeSeed<'de> for CheckField<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let many = !self.inside && self.field.cardinality() == Cardinality::Repeated;
        match self.field.kind() {
            _ if many => deserializer.deserialize_any(self),
            Kind::Message(message) if !has_own_json_form(&message) => CheckMessage {
                descriptor: &message,
                path: self.path,
            }
            .deserialize(deserializer),
            Kind::Enum(_) => deserializer.deserialize_any(self),
            _ => deserializer.deserialize_ignored_any(IgnoredAny).map(drop),
        }
    }
}

impl<'de> Visitor<'de> for CheckField<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = match self.field.kind() {
            Kind::Enum(_) if self.inside || self.field.cardinality() != Cardinality::Repeated => {
                "the name or number of an enum value"
            }
            _ if self.field.is_map() => "a JSON object",
            _ => "a JSON array",
        };
        write!(formatter, "{} to be {shape}", self.path)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<(), E> {
        match i32::try_from(number) {
            Ok(_) if matches!(self.field.kind(), Kind::Enum(_)) => Ok(()),
            _ => Err(E::invalid_value(serde::de::Unexpected::Signed(number), &self)),
        }
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<(), E> {
        match i64::try_from(number) {
            Ok(number) => self.visit_i64(number),
            Err(_) => Err(E::invalid_value(serde::de::Unexpected::Unsigned(number), &self)),
        }
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<(), E> {
        let single = self.inside || self.field.cardinality() != Cardinality::Repeated;
        let Kind::Enum(descriptor) = self.field.kind() else {
            return Err(E::invalid_type(serde::de::Unexpected::Str(name), &self));
        };
        if !single {
            return Err(E::invalid_type(serde::de::Unexpected::Str(name), &self));
        }
        if descriptor.get_value_by_name(name).is_some() {
            return Ok(());
        }
        let names: Vec<_> = descriptor.values().map(|value| value.name().to_owned()).collect();
        let found: String = name.chars().take(80).collect();
        Err(E::custom(format_args!(
            "{}: expected one of {}, got {found:?}",
            self.path,
            names.join(", "),
        )))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        if self.field.cardinality() != Cardinality::Repeated || self.inside || self.field.is_map() {
            return Err(A::Error::invalid_type(serde::de::Unexpected::Seq, &self));
        }
        let element = || CheckField {
            field: self.field,
            path: self.path,
            inside: true,
        };
        while sequence.next_element_seed(element())?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some(value) = self.map_value() else {
            return Err(A::Error::invalid_type(serde::de::Unexpected::Map, &self));
        };
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            let path = format!("{}.{}", self.path, key.chars().take(80).collect::<String>());
            if !seen.insert(key) {
                return Err(A::Error::custom(format_args!("{path}: expected once, got twice")));
            }
            map.next_value_seed(CheckField {
                field: &value,
                path: &path,
                inside: true,
            })?;
        }
        Ok(())
    }
}
