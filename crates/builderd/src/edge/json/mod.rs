//! Messages in JSON, strictly.
//!
//! prost-reflect does the work. It reads over some mistakes that a caller would want to know of, and its errors quote
//! what they found, which may be a password. So a body is walked once beforehand ([`check`]), along the message's
//! description. Unknown fields are ignored, as the other Connect implementations do.

mod check;

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use tonic::{Code, Status};

use self::check::{Mistake, check};
use crate::status::{from_field_error, with_info};

/// Encodes what a JSON body says.
///
/// # Errors
/// INVALID_ARGUMENT that names the field or the place in the text.
pub(super) fn decode(descriptor: &MessageDescriptor, body: &[u8]) -> Result<Bytes, Status> {
    let malformed = |message: &str| with_info(Code::InvalidArgument, message, "MALFORMED_JSON", []);
    check(descriptor, body).map_err(|mistake| match mistake {
        Mistake::Field(error) => from_field_error(error),
        Mistake::Text(error) => malformed(&error.to_string()),
    })?;

    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let message = DynamicMessage::deserialize_with_options(descriptor.clone(), &mut deserializer, &options)
        .and_then(|message| deserializer.end().map(|()| message))
        .map_err(|error| malformed(&error.to_string()))?;
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
