//! The commands on the pages for operators, so that tests can type them.
//!
//! A block of a page with `<!-- run: NAME -->` in the line above it is run by a test. In it a command is a line after the
//! prompt `$ ` with the lines without a prompt that follow it.

/// The commands of a page's block.
///
/// # Errors
/// When the page has no such block, or nothing is to be typed in it.
pub fn commands(page: &str, name: &str) -> anyhow::Result<Vec<String>> {
    let opening = format!("<!-- run: {name} -->\n```console\n");
    let (_, rest) = page
        .split_once(&opening)
        .ok_or_else(|| anyhow::anyhow!("the page has no block {name} of console"))?;
    let (block, _) = rest
        .split_once("\n```")
        .ok_or_else(|| anyhow::anyhow!("the block {name} does not end"))?;
    let mut commands: Vec<String> = Vec::new();
    for line in block.lines() {
        match (line.strip_prefix("$ "), commands.last_mut()) {
            (Some(command), _) => commands.push(command.to_owned()),
            (None, Some(command)) => {
                command.push('\n');
                command.push_str(line);
            }
            (None, None) => anyhow::bail!("the block {name} begins without a prompt"),
        }
    }
    Ok(commands)
}

/// The names of all blocks of a page that are to be run, in its order.
#[must_use]
pub fn names(page: &str) -> Vec<&str> {
    page.lines()
        .filter_map(|line| line.strip_prefix("<!-- run: ")?.strip_suffix(" -->"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{commands, names};

    #[test]
    fn commands_are_found_with_the_lines_that_belong_to_them() {
        let page = "# A\n<!-- run: a -->\n```console\n$ one \\\n    two\n$ three\n```\nText.\n<!-- run: b -->\n```sh\nx\n```\n";
        assert_eq!(names(page), ["a", "b"]);
        assert_eq!(commands(page, "a").unwrap(), ["one \\\n    two", "three"]);
        for missing in ["b", "c"] {
            assert!(commands(page, missing).is_err(), "{missing}");
        }
    }
}
