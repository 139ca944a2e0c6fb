//! Kernel configuration: whether the final `.config` is what was meant.
//!
//! `select`, defaults and renamed options change a configuration without a word: with modules off, an `=m` even becomes `=y`. So the
//! fragment and the list of what must be off are compared with the result, option by option.

use std::collections::BTreeMap;

/// Options and their values, as in the file: `y`, `100`, `"text"`. An option that is not set is not in the map.
type Options<'a> = BTreeMap<&'a str, &'a str>;

/// Every way in which `config` differs from what `fragment` and `must_be_off` say, a line each.
pub(crate) fn differences(fragment: &str, must_be_off: &str, config: &str) -> Vec<String> {
    let actual = set_options(config);
    let wanted = set_options(fragment);
    let mut lines = Vec::new();
    for (option, value) in &wanted {
        if actual.get(option) != Some(value) {
            lines.push(format!("{option} should be {value} and is {}", shown(actual.get(option))));
        }
    }
    let listed = must_be_off.lines().map(str::trim).filter(|line| line.starts_with("CONFIG_"));
    for option in unset_options(fragment).chain(listed) {
        if let Some(value) = actual.get(option) {
            lines.push(format!("{option} should be off and is {value}"));
        }
        if wanted.contains_key(option) {
            lines.push(format!("{option} is asked to be on and off"));
        }
    }
    let modules = actual.iter().filter(|(_, value)| **value == "m");
    lines.extend(modules.map(|(option, _)| format!("{option} is a module, and nothing could load it")));
    lines
}

/// `CONFIG_X=value` lines, except `=n`.
fn set_options(text: &str) -> Options<'_> {
    let lines = text.lines().map(str::trim).filter(|line| line.starts_with("CONFIG_"));
    lines.filter_map(|line| line.split_once('=')).filter(|(_, value)| *value != "n").collect()
}

/// `# CONFIG_X is not set` and `CONFIG_X=n` lines.
fn unset_options(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter_map(|line| {
        let commented = line.strip_prefix("# ").and_then(|rest| rest.strip_suffix(" is not set"));
        commented.or_else(|| line.strip_suffix("=n")).filter(|option| option.starts_with("CONFIG_"))
    })
}

fn shown<'a>(value: Option<&&'a str>) -> &'a str {
    value.copied().unwrap_or("off")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAGMENT: &str = "# why\nCONFIG_A=y\nCONFIG_HZ=100\nCONFIG_NAME=\"x\"\n# CONFIG_B is not set\nCONFIG_C=n\n";

    #[test]
    fn a_configuration_as_it_was_meant_has_no_differences() {
        let config = "CONFIG_A=y\nCONFIG_HZ=100\nCONFIG_NAME=\"x\"\n# CONFIG_B is not set\nCONFIG_EXTRA=y\n";
        assert_eq!(differences(FRAGMENT, "# none of it\nCONFIG_FLOPPY\n", config), Vec::<String>::new());
    }

    #[test]
    fn every_option_that_differs_is_named_with_both_values() {
        let config = "CONFIG_HZ=250\nCONFIG_NAME=\"x\"\nCONFIG_B=y\nCONFIG_C=y\n# CONFIG_A is not set\n";
        let expected = [
            "CONFIG_A should be y and is off",
            "CONFIG_HZ should be 100 and is 250",
            "CONFIG_B should be off and is y",
            "CONFIG_C should be off and is y",
        ];
        assert_eq!(differences(FRAGMENT, "", config), expected);
    }

    #[test]
    fn a_driver_from_the_list_that_came_by_itself_is_found() {
        let config = "CONFIG_A=y\nCONFIG_HZ=100\nCONFIG_NAME=\"x\"\nCONFIG_FLOPPY=y\n";
        assert_eq!(differences(FRAGMENT, "CONFIG_FLOPPY\n", config), ["CONFIG_FLOPPY should be off and is y"]);
    }

    #[test]
    fn an_option_whose_name_begins_like_a_listed_one_is_another_option() {
        let config = "CONFIG_A=y\nCONFIG_HZ=100\nCONFIG_NAME=\"x\"\nCONFIG_SCSI_MOD=y\n";
        assert_eq!(differences(FRAGMENT, "CONFIG_SCSI\n", config), Vec::<String>::new());
    }

    #[test]
    fn modules_and_contradictions_are_differences() {
        let lines = differences("CONFIG_A=y\n", "CONFIG_A\n", "CONFIG_A=y\nCONFIG_M=m\n");
        let expected = [
            "CONFIG_A should be off and is y",
            "CONFIG_A is asked to be on and off",
            "CONFIG_M is a module, and nothing could load it",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn the_fragment_of_the_project_asks_for_nothing_that_its_list_forbids() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/kernel");
        let fragment = std::fs::read_to_string(dir.join("guest.fragment")).unwrap();
        let list = std::fs::read_to_string(dir.join("must-be-off.list")).unwrap();
        assert_eq!(differences(&fragment, &list, &fragment), Vec::<String>::new());
    }
}
