//! Packages: which a caller may ask for, in the form of the language's registry.
//!
//! A package is a name and one exact version. What may mean another version tomorrow (a range, a wildcard, a tag) or another
//! source (a URL, a path, an alias) is refused. Whether there is such a package is not known here; whether many use it is.

mod known;
mod set;

use known::Known;
pub(crate) use set::PackageSet;

use crate::{Error, ErrorKind, Language};

/// Most packages of one VM.
const MAX_PACKAGES: usize = 50;
/// Longest requirement in bytes: the longest name of npm, and as much again for a version.
const MAX_REQUIREMENT_BYTES: usize = 428;
/// Longest name in bytes, its scope included: npm's limit. PyPI has no name that comes near it.
const MAX_NAME_BYTES: usize = 214;
/// Names that npm keeps for itself.
const RESERVED: [&str; 2] = ["favicon.ico", "node_modules"];

/// Checks the packages of one VM. If `only_known`, they have to be among those that are used most.
fn check(language: Language, packages: &[String], only_known: bool) -> Result<(), Error> {
    if packages.len() > MAX_PACKAGES {
        return Err(refused(format!("Too many packages: {} (max {MAX_PACKAGES})", packages.len())));
    }
    packages.iter().try_for_each(|requirement| check_form(language, requirement))?;
    if only_known { packages.iter().try_for_each(|requirement| check_known(language, requirement)) } else { Ok(()) }
}

fn check_form(language: Language, requirement: &str) -> Result<(), Error> {
    let shown: String = requirement.chars().take(60).collect();
    let (is_pinned, form) = match language {
        Language::Python => (is_python(requirement), "name==version, such as requests==2.32.3"),
        Language::JavaScript => (is_npm(requirement), "name@version, such as lodash@4.17.21"),
        Language::Raw => {
            return Err(refused(format!("Package {shown:?} cannot be installed: raw has no packages")));
        }
    };
    if is_pinned && requirement.len() <= MAX_REQUIREMENT_BYTES {
        return Ok(());
    }
    Err(refused(format!("Package {shown:?} is not pinned to one version of one package: write {form}")))
}

/// Checks that many use the package of a requirement whose form is right.
fn check_known(language: Language, requirement: &str) -> Result<(), Error> {
    let name = match language {
        Language::Python => requirement.split(['[', '=']).next(),
        Language::JavaScript => requirement.rsplit_once('@').map(|(name, _version)| name),
        Language::Raw => None,
    };
    let name = name.unwrap_or(requirement);
    let Known::No(meant) = known::look_up(language, name) else { return Ok(()) };
    let suggestion = meant.map_or_else(String::new, |meant| format!(": did you mean {meant}?"));
    let error = refused(format!("Package {name:?} is not among those of {language} that are used most{suggestion}"));
    let remedy = "if the name is right, allow it: sbx run --no-validation, in Python enable_package_validation=False, in Rust \
                  SchedulerConfig::package_validation";
    Err(error.remedied_by(remedy))
}

/// `name==version` or `name[extra,…]==version`, by PEP 508 and PEP 440.
fn is_python(requirement: &str) -> bool {
    let Some((project, version)) = requirement.split_once("==") else { return false };
    let (name, extras) = match project.split_once('[') {
        Some((name, extras)) => (name, extras.strip_suffix(']').map(|extras| extras.split(',').all(is_python_name))),
        None => (project, Some(true)),
    };
    is_python_name(name) && extras == Some(true) && is_python_version(version)
}

fn is_python_name(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    name.len() <= MAX_NAME_BYTES
        && name.bytes().all(is_inner)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
}

/// `[epoch!]release[pre][.post][.dev][+local]`, in any of the spellings that PEP 440 takes for one of these.
fn is_python_version(version: &str) -> bool {
    let version = version.to_ascii_lowercase();
    let (public, local) = version.split_once('+').map_or((&*version, None), |(public, local)| (public, Some(local)));
    let is_local_part = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if local.is_some_and(|local| !local.split(['.', '-', '_']).all(is_local_part)) {
        return false;
    }
    let (epoch, rest) = public.split_once('!').unwrap_or(("0", public));
    let Some(rest) = after_number(epoch).filter(|left| left.is_empty()).and_then(|_| after_release(rest)) else {
        return false;
    };
    let rest = after_segment(rest, &["alpha", "beta", "preview", "pre", "rc", "a", "b", "c"]);
    // `1.0-1` is another way to write `1.0.post1`.
    let post = rest.strip_prefix('-').and_then(after_number);
    let rest = post.unwrap_or_else(|| after_segment(rest, &["post", "rev", "r"]));
    after_segment(rest, &["dev"]).is_empty()
}

/// What follows `1`, `1.2`, `1.2.3` and so on.
fn after_release(text: &str) -> Option<&str> {
    let mut rest = after_number(text)?;
    while let Some(more) = rest.strip_prefix('.').and_then(after_number) {
        rest = more;
    }
    Some(rest)
}

fn after_number(text: &str) -> Option<&str> {
    let rest = text.trim_start_matches(|c: char| c.is_ascii_digit());
    (rest.len() < text.len()).then_some(rest)
}

/// What follows one of the `names` with a number or without, and with or without a separator before each. `text` if none is there.
fn after_segment<'a>(text: &'a str, names: &[&str]) -> &'a str {
    let unseparated = |text: &'a str| text.strip_prefix(['.', '-', '_']).unwrap_or(text);
    let Some(rest) = names.iter().find_map(|name| unseparated(text).strip_prefix(name)) else { return text };
    after_number(unseparated(rest)).unwrap_or(rest)
}

/// `name@version` or `@scope/name@version`, by the rules of npm; old packages have capitals in their names.
fn is_npm(requirement: &str) -> bool {
    let Some((name, version)) = requirement.rsplit_once('@') else { return false };
    let is_named = match name.strip_prefix('@') {
        Some(scoped) => scoped.split_once('/').is_some_and(|(scope, name)| is_npm_word(scope) && is_npm_word(name)),
        None => is_npm_word(name),
    };
    is_named && name.len() <= MAX_NAME_BYTES && is_semantic(version)
}

fn is_npm_word(word: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    !word.is_empty()
        && word.bytes().all(is_allowed)
        && !word.starts_with(['.', '_'])
        && !RESERVED.contains(&word.to_ascii_lowercase().as_str())
}

/// `major.minor.patch[-pre][+build]`, by Semantic Versioning 2.0.0. Fewer numbers are a range.
fn is_semantic(version: &str) -> bool {
    let (version, build) = version.split_once('+').map_or((version, None), |(version, build)| (version, Some(build)));
    let (core, pre) = version.split_once('-').map_or((version, None), |(core, pre)| (core, Some(pre)));
    let is_word =
        |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let is_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let is_number = |part: &str| !part.is_empty() && is_digits(part) && (part == "0" || !part.starts_with('0'));
    core.split('.').count() == 3
        && core.split('.').all(is_number)
        && pre.is_none_or(|pre| pre.split('.').all(|part| is_word(part) && (!is_digits(part) || is_number(part))))
        && build.is_none_or(|build| build.split('.').all(is_word))
}

fn refused(message: String) -> Error {
    Error::new(ErrorKind::PackageNotAllowed, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(language: Language, requirement: &str) -> Option<String> {
        check(language, &[requirement.to_owned()], false).err().map(|error| {
            assert_eq!(error.kind(), ErrorKind::PackageNotAllowed);
            error.to_string()
        })
    }

    #[test]
    fn pinned_packages_of_python_are_allowed() {
        for requirement in [
            "requests==2.32.3",
            "uvicorn[standard]==0.30.1",
            "a[b,c-d]==1",
            "zope.interface==6.4.post2",
            "torch==2.4.0+cu121",
            "Django==5.1b1",
            "x==1!2.0.dev3",
            "x==1.0-1",
            "x==1.0.RC2",
            "x==2024.1",
            "x==1.0a1.post2.dev3+local.7-x",
        ] {
            assert_eq!(message(Language::Python, requirement), None, "{requirement}");
        }
    }

    #[test]
    fn what_is_no_pinned_package_of_python_is_refused_with_the_form() {
        for requirement in [
            "",
            "requests",
            "requests==",
            "==1.0",
            "requests>=2.0",
            "requests~=2.0",
            "requests===2.0",
            "requests==2.*",
            "requests==2.0,<3",
            "requests==latest",
            "requests==1.",
            "requests==1.0+",
            "requests==1.0; python_version > '3'",
            "requests == 2.0",
            "requests==2.0\n--index-url x",
            "requests@2.32.3",
            "requests @ https://example.com/a.whl",
            "-rfile==1",
            "../evil==1",
            "a[b==1",
            "a[]==1",
            "a]==1",
            "_a==1",
            "a-==1",
            "é==1",
        ] {
            let told = message(Language::Python, requirement);
            assert!(told.is_some_and(|text| text.contains("write name==version")), "{requirement:?}");
        }
    }

    #[test]
    fn pinned_packages_of_javascript_are_allowed() {
        for requirement in [
            "lodash@4.17.21",
            "@types/node@22.5.0",
            "JSONStream@1.3.5",
            "left-pad@1.3.0-rc.1+build.007",
            "@a~b/c.d_e@0.0.0",
            "x@1.0.0-0a.-",
        ] {
            assert_eq!(message(Language::JavaScript, requirement), None, "{requirement}");
        }
    }

    #[test]
    fn what_is_no_pinned_package_of_javascript_is_refused_with_the_form() {
        for requirement in [
            "lodash",
            "@types/node",
            "lodash@",
            "@1.0.0",
            "lodash==4.17.21",
            "lodash@latest",
            "lodash@^4.17.21",
            "lodash@4.17",
            "lodash@4.17.x",
            "lodash@*",
            "lodash@v4.17.21",
            "lodash@04.17.21",
            "lodash@4.17.21-01",
            "lodash@4.17.21-",
            "lodash@4.17.21+",
            "lodash@npm:other@1.0.0",
            "lodash@https://example.com/a.tgz",
            "../evil@1.0.0",
            "a/b@1.0.0",
            "@a@1.0.0",
            "@/b@1.0.0",
            "@a/b/c@1.0.0",
            "@a/.b@1.0.0",
            "_a@1.0.0",
            "node_modules@1.0.0",
            "a b@1.0.0",
        ] {
            let told = message(Language::JavaScript, requirement);
            assert!(told.is_some_and(|text| text.contains("write name@version")), "{requirement:?}");
        }
    }

    #[test]
    fn a_package_that_few_use_is_refused_unless_all_are_allowed() {
        for (language, known, slip, meant) in [
            (Language::Python, "Uvicorn[standard]==0.30.1", "reqeusts==2.32.3", "requests"),
            (Language::JavaScript, "@types/node@22.5.0", "lodahs@4.17.21", "lodash"),
        ] {
            assert!(check(language, &[known.to_owned()], true).is_ok(), "{known}");
            let packages = [known.to_owned(), slip.to_owned()];
            let error = check(language, &packages, true).expect_err("few use it");
            assert_eq!(error.kind(), ErrorKind::PackageNotAllowed);
            assert!(error.to_string().ends_with(&format!("that are used most: did you mean {meant}?")), "{error}");
            assert!(error.remedy().is_some_and(|remedy| remedy.contains("package_validation")));
            assert!(check(language, &packages, false).is_ok());
        }
        let error = check(Language::Python, &["zzzqqqxxxyyy==1".to_owned()], true).expect_err("nobody uses it");
        assert!(error.to_string().ends_with("used most"), "{error}");
    }

    #[test]
    fn the_shell_has_no_packages_at_all() {
        assert!(check(Language::Raw, &[], true).is_ok());
        for requirement in ["curl", "requests==2.32.3", "lodash@4.17.21"] {
            assert!(message(Language::Raw, requirement).is_some_and(|text| text.contains("raw has no packages")));
        }
    }

    #[test]
    fn the_number_and_the_lengths_have_a_limit() {
        let many: Vec<String> = (0..51).map(|n| format!("a{n}==1")).collect();
        assert!(check(Language::Python, &many[..50], false).is_ok());
        let error = check(Language::Python, &many, false).expect_err("they are too many");
        assert_eq!(error.to_string(), "Too many packages: 51 (max 50)");
        let named = |length: usize| format!("{}@1.0.0", "a".repeat(length));
        assert_eq!(message(Language::JavaScript, &named(MAX_NAME_BYTES)), None);
        assert!(message(Language::JavaScript, &named(MAX_NAME_BYTES + 1)).is_some());
        assert!(message(Language::Python, &format!("a==1{}", ".1".repeat(MAX_REQUIREMENT_BYTES / 2))).is_some());
    }

    proptest! {
        #[test]
        fn what_is_allowed_has_nothing_in_it_that_a_shell_or_an_installer_reads(text in "[-a@=1.\\[\\]/+!*,;<>~^ \\n:_x]{0,16}") {
            for language in Language::ALL {
                if check(language, std::slice::from_ref(&text), false).is_ok() {
                    prop_assert!(!text.starts_with(['-', '.', '/']), "{text:?}");
                    prop_assert!(!text.contains(['*', ';', '<', '>', '^', ' ', '\n', ':']), "{text:?}");
                    prop_assert!(!text.contains(".."), "{text:?}");
                }
            }
        }

        #[test]
        fn any_release_with_any_epoch_and_local_part_is_one_version(
            release in prop::collection::vec(0_u32..10_000, 1..6), epoch in 0_u8..9, local in "[a-z0-9]{1,8}"
        ) {
            let release = release.iter().map(ToString::to_string).collect::<Vec<_>>().join(".");
            let whole = format!("{epoch}!{release}+{local}");
            prop_assert!(is_python_version(&release) && is_python_version(&whole));
            let open = [".*", ".", "x"].map(|end| format!("{release}{end}"));
            prop_assert!(!open.iter().any(|open| is_python_version(open)));
        }
    }
}
