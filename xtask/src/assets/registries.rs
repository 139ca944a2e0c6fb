//! The registries step: from which hosts pip and npm install, as they say themselves where the image is made.
//!
//! A guest's default network reaches these and no others, and no source of ours names them. The index is asked for one package, because
//! files may come from another host than their list. What was said is kept until the tools are configured otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result};
use exec_sandbox_image::KeyBuilder;

use super::cache::Cache;
use super::fetch;
use super::lock::Lock;
use super::progress::{self, Ui};
use super::tools;

/// The version of what this file does.
const RECIPE: &str = "registries 2";

/// The fact that lists the hosts of a language.
const HOSTS: &str = "hosts";

/// Hosts by language.
pub(crate) type Registries = BTreeMap<String, Vec<String>>;

/// What one language's client is asked.
#[derive(Debug)]
struct Question {
    language: &'static str,
    /// The package that the index is asked for.
    package: String,
    /// Prints how the client is configured: as long as that stays, so does the answer.
    configuration: Command,
    asking: Command,
    /// The hosts, from the configuration and from what the client said.
    hosts: fn(&str, &str) -> BTreeSet<String>,
}

/// The hosts, from the cache or asked for. Where a client cannot tell, they stay those of `published`, the image that is replaced, and
/// the next build asks again.
pub(crate) fn ensure(lock: &Lock, published: &Registries, cache: &Cache, ui: &mut Ui) -> Result<Registries> {
    let wheel = &lock.wheels.first().context("the lock names no wheel")?.name;
    let bun = format!("{}@{}", lock.bun.name, lock.bun.version);
    let mut registries = Registries::new();
    for question in [python(wheel), javascript(&bun)] {
        let language = question.language;
        let hosts = match answer(question, cache, ui)? {
            Ok(hosts) => hosts,
            Err(error) => former(language, published, &error),
        };
        if !hosts.is_empty() {
            registries.insert(language.to_owned(), hosts);
        }
    }
    Ok(registries)
}

fn python(wheel: &str) -> Question {
    let (mut configuration, mut asking) = (pip(), pip());
    configuration.args(["config", "list"]);
    asking.args(["index", "versions", "-vv", wheel]);
    let hosts = |_: &str, said: &str| hosts_of_links(said);
    Question { language: "python", package: wheel.to_owned(), configuration, asking, hosts }
}

fn javascript(package: &str) -> Question {
    let (mut configuration, mut asking) = (fetch::npm(), fetch::npm());
    configuration.args(["config", "get", "registry"]);
    asking.args(["view", package, "dist.tarball"]);
    let hosts = |registry: &str, tarball: &str| hosts(registry).chain(hosts(tarball)).collect();
    Question { language: "javascript", package: package.to_owned(), configuration, asking, hosts }
}

/// The hosts of one language, or why its client cannot tell. Only what it said is kept, never that it failed.
fn answer(mut question: Question, cache: &Cache, ui: &mut Ui) -> Result<Result<Vec<String>>> {
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
            let found = serde_json::to_string(&(question.hosts)(&configuration, &said));
            let found = found.context("cannot note the registries")?;
            cache.keep(&step, key, &cache.scratch(&step)?, &[(HOSTS, &found)])?
        }
    };
    let hosts: Vec<String> = serde_json::from_str(artefact.fact(HOSTS)?).context("cannot read the registries")?;
    if hosts.is_empty() {
        ui.note(&format!("no host of {language}'s registry speaks HTTPS: the image names none"));
    }
    Ok(Ok(hosts))
}

/// The hosts that an image without an answer has: those it had, or none.
fn former(language: &str, published: &Registries, error: &anyhow::Error) -> Vec<String> {
    let hosts = published.get(language).cloned().unwrap_or_default();
    let what = if hosts.is_empty() { "does not say" } else { "says as before" };
    let what = format!("the image {what} from where {language} installs, and the next build asks again:");
    progress::warn(&[what, format!("{error:#}")]);
    hosts
}

fn pip() -> Command {
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "--disable-pip-version-check", "--no-color"]);
    command
}

/// The hosts of files and of the index that names them, from `Found link FILE (from INDEX)` as pip says it.
fn hosts_of_links(said: &str) -> BTreeSet<String> {
    said.lines().filter(|line| line.trim_start().starts_with("Found link ")).flat_map(hosts).collect()
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
        let hosts = |_: &str, said: &str| hosts(said).collect();
        Question { language: "python", package: "package".into(), configuration, asking: sh(asking), hosts }
    }

    fn answer_to(question: Question, cache: &Cache) -> Result<Vec<String>> {
        progress::Report::new().step("registries", |ui| answer(question, cache, ui)).unwrap()
    }

    #[test]
    fn a_client_that_cannot_tell_is_asked_again_and_one_that_told_is_not() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        assert!(answer_to(question("exit 1"), &cache).is_err());
        let said = "echo https://packages.example.com/a";
        assert_eq!(answer_to(question(said), &cache).unwrap(), ["packages.example.com"]);
        assert_eq!(answer_to(question("exit 1"), &cache).unwrap(), ["packages.example.com"]);
    }

    #[test]
    fn a_client_that_is_not_there_cannot_tell() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        let missing = Question { configuration: Command::new("no-such-program-anywhere"), ..question("exit 1") };
        assert!(answer_to(missing, &cache).is_err());
    }

    #[test]
    fn hosts_that_cannot_be_asked_for_stay_what_they_were() {
        let published = Registries::from([("python".to_owned(), vec!["packages.example.com".to_owned()])]);
        let error = anyhow::anyhow!("there is no network");
        assert_eq!(former("python", &published, &error), ["packages.example.com"]);
        assert!(former("javascript", &published, &error).is_empty());
    }

    #[test]
    fn what_no_allow_list_can_let_through_is_left_out() {
        let text = "http://a.example/ https://b.example:8443/x https://10.0.0.1/ https://[::1]/ https://localhost/ \
                    https://user:word@c.example/d";
        assert_eq!(hosts(text).collect::<Vec<_>>(), ["c.example"]);
    }
}
