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
use super::progress::Ui;
use super::tools;

/// The version of what this file does.
const RECIPE: &str = "registries 1";

/// The fact that lists the hosts by language.
const HOSTS: &str = "hosts";

/// Hosts by language.
pub(crate) type Registries = BTreeMap<String, Vec<String>>;

/// The hosts, from the cache or asked for.
pub(crate) fn ensure(lock: &Lock, cache: &Cache, ui: &mut Ui) -> Result<Registries> {
    let wheel = lock.wheels.first().context("the lock names no wheel")?;
    let bun = format!("{}@{}", lock.bun.name, lock.bun.version);
    let pip_is_configured = tools::capture(pip().args(["config", "list"]))?;
    let registry = tools::capture(fetch::npm().args(["config", "get", "registry"]))?;
    let mut key = KeyBuilder::new(RECIPE);
    for part in [&pip_is_configured, &registry, &wheel.name, &bun] {
        key = key.with("part", part.as_bytes());
    }
    let key = key.finish();
    let artefact = match cache.artefact("registries", key)? {
        Some(artefact) => artefact,
        None => {
            ui.work("asking pip and npm from where they install");
            let links = tools::capture(pip().args(["index", "versions", "-vv", &wheel.name]))?;
            let tarball = tools::capture(fetch::npm().args(["view", &bun, "dist.tarball"]))?;
            let found = BTreeMap::from([
                ("python", hosts_of_links(&links)),
                ("javascript", hosts(&registry).chain(hosts(&tarball)).collect()),
            ]);
            let found = serde_json::to_string(&found).context("cannot note the registries")?;
            cache.keep("registries", key, &cache.scratch("registries")?, &[(HOSTS, &found)])?
        }
    };
    let mut registries: Registries =
        serde_json::from_str(artefact.fact(HOSTS)?).context("cannot read the registries")?;
    registries.retain(|language, hosts| {
        if hosts.is_empty() {
            ui.note(&format!("no host of {language}'s registry speaks HTTPS: the image names none"));
        }
        !hosts.is_empty()
    });
    Ok(registries)
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

    #[test]
    fn what_no_allow_list_can_let_through_is_left_out() {
        let text = "http://a.example/ https://b.example:8443/x https://10.0.0.1/ https://[::1]/ https://localhost/ \
                    https://user:word@c.example/d";
        assert_eq!(hosts(text).collect::<Vec<_>>(), ["c.example"]);
    }
}
