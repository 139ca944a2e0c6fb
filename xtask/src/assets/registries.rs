//! The registries step: from which hosts and which index pip and npm install, as they say themselves where the image is made.
//!
//! A guest's default network reaches these hosts and no others, a guest that installs packages is told the index, and no source of ours
//! names either. An index that a guest could not ask, or that needs a secret, is left out. The index is asked for one package, because
//! files may come from another host than their list. What was said is kept until the tools are configured otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result};
use exec_sandbox_image::{KeyBuilder, is_index};
use serde::{Deserialize, Serialize};

use super::cache::Cache;
use super::fetch;
use super::lock::Lock;
use super::progress::{self, Ui};
use super::tools;

/// The version of what this file does.
const RECIPE: &str = "registries 3";

/// The fact that is the answer of a language's client.
const ANSWER: &str = "answer";

/// From where languages install.
#[derive(Clone, Debug, Default)]
pub(crate) struct Registries {
    /// Hosts by language.
    pub(crate) hosts: BTreeMap<String, Vec<String>>,
    /// The index by language.
    pub(crate) indexes: BTreeMap<String, String>,
}

/// From where one language installs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    hosts: BTreeSet<String>,
    index: Option<String>,
}

/// What one language's client is asked.
#[derive(Debug)]
struct Question {
    language: &'static str,
    /// The package that the index is asked for.
    package: String,
    /// Prints how the client is configured: as long as that stays, so does the answer.
    configuration: Command,
    asking: Command,
    /// The answer, from the package's name, the configuration and what the client said.
    read: fn(&str, &str, &str) -> Answer,
}

/// The answers, from the cache or asked for. Where a client cannot tell, they stay those of `published`, the image that is replaced, and
/// the next build asks again.
pub(crate) fn ensure(lock: &Lock, published: &Registries, cache: &Cache, ui: &mut Ui) -> Result<Registries> {
    let wheel = &lock.wheels.first().context("the lock names no wheel")?.name;
    let bun = format!("{}@{}", lock.bun.name, lock.bun.version);
    let mut registries = Registries::default();
    for question in [python(wheel), javascript(&bun)] {
        let language = question.language;
        let Answer { hosts, index } = match answer(question, cache, ui)? {
            Ok(answer) => answer,
            Err(error) => former(language, published, &error),
        };
        if !hosts.is_empty() {
            registries.hosts.insert(language.to_owned(), hosts.into_iter().collect());
        }
        registries.indexes.extend(index.map(|index| (language.to_owned(), index)));
    }
    Ok(registries)
}

fn python(wheel: &str) -> Question {
    let (mut configuration, mut asking) = (pip(), pip());
    configuration.args(["config", "list"]);
    asking.args(["index", "versions", "-vv", wheel]);
    let read = |package: &str, _: &str, said: &str| Answer {
        hosts: hosts_of_links(said),
        index: index_of_links(package, said),
    };
    Question { language: "python", package: wheel.to_owned(), configuration, asking, read }
}

fn javascript(package: &str) -> Question {
    let (mut configuration, mut asking) = (fetch::npm(), fetch::npm());
    configuration.args(["config", "get", "registry"]);
    asking.args(["view", package, "dist.tarball"]);
    let read = |_: &str, registry: &str, tarball: &str| Answer {
        hosts: hosts(registry).chain(hosts(tarball)).collect(),
        index: index(registry),
    };
    Question { language: "javascript", package: package.to_owned(), configuration, asking, read }
}

/// The answer of one language's client, or why its client cannot tell. Only what it said is kept, never that it failed.
fn answer(mut question: Question, cache: &Cache, ui: &mut Ui) -> Result<Result<Answer>> {
    let language = question.language;
    let configuration = match tools::capture(&mut question.configuration) {
        Ok(configuration) => configuration,
        Err(e) => return Ok(Err(e)),
    };
    let mut key = KeyBuilder::new(RECIPE);
    for part in [language, &configuration, &question.package] {
        key = key.with("part", part.as_bytes());
    }
    let (key, step) = (key.finish(), format!("registries_{language}"));
    let artefact = match cache.artefact(&step, key)? {
        Some(artefact) => artefact,
        None => {
            ui.work(&format!("asking from where {language} installs"));
            let said = match tools::capture(&mut question.asking) {
                Ok(said) => said,
                Err(e) => return Ok(Err(e)),
            };
            let found = serde_json::to_string(&(question.read)(&question.package, &configuration, &said));
            let found = found.context("cannot note the registries")?;
            cache.keep(&step, key, &cache.scratch(&step)?, &[(ANSWER, &found)])?
        }
    };
    let answer: Answer = serde_json::from_str(artefact.fact(ANSWER)?).context("cannot read the registries")?;
    if answer.hosts.is_empty() {
        ui.note(&format!("no host of {language}'s registry speaks HTTPS: the image names none"));
    }
    if answer.index.is_none() {
        ui.note(&format!("{language}'s index is none that a guest could ask without a secret: the image names none"));
    }
    Ok(Ok(answer))
}

/// What an image without an answer has: what it had, or nothing.
fn former(language: &str, published: &Registries, error: &anyhow::Error) -> Answer {
    let hosts: BTreeSet<String> = published.hosts.get(language).into_iter().flatten().cloned().collect();
    let index = published.indexes.get(language).cloned();
    let what = if hosts.is_empty() { "does not say" } else { "says as before" };
    let what = format!("the image {what} from where {language} installs, and the next build asks again:");
    progress::warn(&[what, format!("{error:#}")]);
    Answer { hosts, index }
}

fn pip() -> Command {
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "--disable-pip-version-check", "--no-color"]);
    command
}

/// The hosts of files and of the index that names them, from `Found link FILE (from INDEX)` as pip says it.
fn hosts_of_links(said: &str) -> BTreeSet<String> {
    links(said).flat_map(hosts).collect()
}

/// The first index that has the package, from its page on it. If a guest cannot ask that one, no other is taken for it.
fn index_of_links(package: &str, said: &str) -> Option<String> {
    let place = links(said).find_map(|line| {
        let (page, _) = line.split_once("(from ")?.1.split_once(')')?;
        let (place, name) = page.trim_end_matches('/').rsplit_once('/')?;
        (name == normalised(package)).then_some(place)
    });
    index(place?)
}

fn links(said: &str) -> impl Iterator<Item = &str> {
    said.lines().filter(|line| line.trim_start().starts_with("Found link "))
}

/// A package's name as indexes spell it.
fn normalised(package: &str) -> String {
    let parts: Vec<&str> = package.split(['-', '_', '.']).filter(|part| !part.is_empty()).collect();
    parts.join("-").to_ascii_lowercase()
}

/// An address as the manifest has it, if it can have it.
fn index(address: &str) -> Option<String> {
    let address = format!("{}/", address.trim().trim_end_matches('/'));
    let address = address.replacen(":443/", "/", 1);
    is_index(&address).then_some(address)
}

/// The hosts of all addresses of HTTPS at its usual port in a text. Another port, or none of TLS, no guest's list can let through.
fn hosts(text: &str) -> impl Iterator<Item = String> {
    text.split("https://").skip(1).filter_map(|rest| {
        let authority =
            rest.split(|c: char| c == '/' || c == '?' || c == '#' || c == ')' || c.is_whitespace()).next()?;
        let host = authority.rsplit('@').next()?;
        let host = host.strip_suffix(":443").unwrap_or(host).to_ascii_lowercase();
        let is_name = host.rsplit('.').next()?.bytes().any(|byte| byte.is_ascii_alphabetic()) && host.contains('.');
        (is_name && !host.contains(':')).then_some(host)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_of_pips_files_and_of_its_index_are_found() {
        let said = "Looking in indexes: https://elsewhere.example/simple/\n\
                    Starting new HTTPS connection (1): index.example:443\n  \
                    Found link https://files.example/a/b-1.0.whl#sha256=0 (from https://index.example/simple/b/), version: 1.0\n  \
                    Found link https://Files.example:443/a/b-1.1.whl (from https://index.example/simple/b/), version: 1.1\n";
        assert_eq!(hosts_of_links(said).into_iter().collect::<Vec<_>>(), ["files.example", "index.example"]);
    }

    /// A question to shell commands instead of a client.
    fn question(asking: &str) -> Question {
        let sh = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        let configuration = sh("echo configured");
        let read = |package: &str, configured: &str, said: &str| {
            assert_eq!((package, configured.trim()), ("package", "configured"));
            Answer { hosts: hosts(said).collect(), index: index(said) }
        };
        Question { language: "python", package: "package".into(), configuration, asking: sh(asking), read }
    }

    fn answer_to(question: Question, cache: &Cache) -> Result<Answer> {
        progress::Report::new().step("registries", |ui| answer(question, cache, ui)).unwrap()
    }

    #[test]
    fn a_client_that_cannot_tell_is_asked_again_and_one_that_told_is_not() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        assert!(answer_to(question("exit 1"), &cache).is_err());
        let said = "echo https://packages.example.com/a";
        let expected = Answer {
            hosts: BTreeSet::from(["packages.example.com".to_owned()]),
            index: Some("https://packages.example.com/a/".to_owned()),
        };
        assert_eq!(answer_to(question(said), &cache).unwrap(), expected);
        assert_eq!(answer_to(question("exit 1"), &cache).unwrap(), expected);
    }

    #[test]
    fn a_client_that_is_not_there_cannot_tell() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        let missing = Question { configuration: Command::new("no-such-program-anywhere"), ..question("exit 1") };
        assert!(answer_to(missing, &cache).is_err());
    }

    #[test]
    fn what_cannot_be_asked_for_stays_what_it_was() {
        let (host, index) = ("packages.example.com".to_owned(), "https://packages.example.com/simple/".to_owned());
        let published = Registries {
            hosts: BTreeMap::from([("python".to_owned(), vec![host.clone()])]),
            indexes: BTreeMap::from([("python".to_owned(), index.clone())]),
        };
        let error = anyhow::anyhow!("there is no network");
        let expected = Answer { hosts: BTreeSet::from([host]), index: Some(index) };
        assert_eq!(former("python", &published, &error), expected);
        assert_eq!(former("javascript", &published, &error), Answer::default());
    }

    #[test]
    fn pips_index_is_the_page_of_a_package_without_its_name() {
        let said = |page: &str| {
            format!("  Found link https://f.example/a/b-1.0.whl#sha256=0 (from {page}) (requires-python:>=3.8)\n")
        };
        let cases = [
            ("https://index.example/simple/cloud-pickle/", Some("https://index.example/simple/")),
            ("https://index.example:443/a/b/simple/cloud-pickle", Some("https://index.example/a/b/simple/")),
            ("https://index.example/wheels/", None),
            ("http://index.example/simple/cloud-pickle/", None),
            ("https://index.example:8443/simple/cloud-pickle/", None),
            ("https://user:****@index.example/simple/cloud-pickle/", None),
            ("file:///srv/simple/cloud-pickle/", None),
        ];
        for (page, expected) in cases {
            let index = index_of_links("Cloud_Pickle", &said(page));
            assert_eq!(index.as_deref(), expected, "{page}");
        }
        // A list of files is no index, so one behind it counts; an index that no guest could ask is none that may be passed over.
        let both = |page| format!("{}{}", said(page), said(cases[0].0));
        assert_eq!(index_of_links("cloud.pickle", &both(cases[2].0)).as_deref(), cases[0].1);
        assert_eq!(index_of_links("cloud.pickle", &both(cases[5].0)), None);
        assert_eq!(index_of_links("cloudpickle", "Looking in indexes: https://index.example/simple\n"), None);
    }

    #[test]
    fn npms_index_is_its_registry() {
        assert_eq!(index("https://registry.example/\n").as_deref(), Some("https://registry.example/"));
        assert_eq!(index("https://registry.example/npm").as_deref(), Some("https://registry.example/npm/"));
        for bad in ["undefined", "", "http://registry.example/", "https://word@registry.example/"] {
            assert_eq!(index(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn what_no_allow_list_can_let_through_is_left_out() {
        let text = "http://a.example/ https://b.example:8443/x https://10.0.0.1/ https://[::1]/ https://localhost/ \
                    https://user:word@c.example/d";
        assert_eq!(hosts(text).collect::<Vec<_>>(), ["c.example"]);
    }
}
