//! Text that came from elsewhere, made fit for a log, a terminal and a JSON document.

/// At most `max_chars` characters of `text`, trimmed, with every control character escaped: a name in a layer must
/// not move a cursor.
pub(crate) fn clean(text: &str, max_chars: usize) -> String {
    let text = text.trim();
    let mut cleaned = String::with_capacity(text.len().min(max_chars));
    for (position, character) in text.chars().enumerate() {
        if position == max_chars {
            cleaned.push('…');
            break;
        }
        // Besides C0 and C1: the characters that reorder text around them.
        if character.is_control()
            || matches!(character, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            cleaned.extend(character.escape_default());
        } else {
            cleaned.push(character);
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn control_and_direction_characters_are_escaped_and_length_is_bounded() {
        for (text, expected) in [
            ("plain", "plain"),
            ("  trimmed\n", "trimmed"),
            ("a\u{1b}[2Jb", "a\\u{1b}[2Jb"),
            ("a\nb", "a\\nb"),
            ("a\u{202e}b", "a\\u{202e}b"),
            ("ééééééé", "ééééé…"),
        ] {
            assert_eq!(
                clean(text, if text.contains('é') { 5 } else { 50 }),
                expected,
                "{text:?}"
            );
        }
    }
}
