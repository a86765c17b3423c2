//! Bytes of a layer in messages.

/// Bytes for a message or a log line: invalid UTF-8 replaced, control characters escaped, so that a name in a layer
/// can neither begin a new line nor drive a terminal.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for character in String::from_utf8_lossy(bytes).chars() {
        if character.is_control() {
            text.extend(character.escape_default());
        } else {
            text.push(character);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn a_name_can_neither_begin_a_line_nor_drive_a_terminal() {
        assert_eq!(printable("häßlich\n\x1b[2J".as_bytes()), "häßlich\\n\\u{1b}[2J");
        assert_eq!(printable(b"\xff/a"), "\u{fffd}/a");
    }
}
