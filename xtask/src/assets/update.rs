//! `--update-lock`: from the recipe's names to versions and digests.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::apt::Apt;
use super::cache::Cache;
use super::fetch;
use super::lock::{self, DebSet, Lock, NpmPackage, Wheel};
use super::places::Places;
use super::progress::{self, Report, Ui};
use super::recipe::Recipe;
use super::tools;

/// What `npm view --json` is asked for.
#[derive(Debug, Deserialize)]
struct NpmView {
    version: String,
    #[serde(rename = "dist.integrity")]
    integrity: String,
}

/// Resolves everything anew and writes the lock file.
pub(crate) fn update_lock(places: &Places, recipe: &Recipe, cache: &Cache) -> Result<()> {
    let mut report = Report::new();
    let lock = report.step("lock", |ui| resolve_all(recipe, cache, ui))?;
    let text = lock.render();
    // What is written must be readable, or the next build fails instead of this command.
    Lock::parse(&text).context("what was resolved does not make a lock file")?;
    let path = places.assets.join(lock::FILE_NAME);
    if let Ok(old) = Lock::load(&places.assets) {
        let changes = |(_, set): &(_, DebSet)| lock::differences(old.debs(*set), lock.debs(*set));
        let moved: Vec<String> = DebSet::ALL.iter().flat_map(changes).collect();
        progress::warn(&moved);
    }
    write_atomically(&path, &text).with_context(|| format!("cannot write {}", path.display()))
}

fn resolve_all(recipe: &Recipe, cache: &Cache, ui: &mut Ui) -> Result<Lock> {
    tools::start_log(&cache.logs(), ui)?;
    ui.work("reading Debian's lists");
    let apt = Apt::update(&cache.apt(), &recipe.debian.suites, &cache.logs(), ui)?;
    let kernel = fetch::resolve(&apt, recipe, DebSet::Kernel)?;
    let qemu = fetch::resolve(&apt, recipe, DebSet::Qemu)?;
    let tools = fetch::resolve(&apt, recipe, DebSet::Tools)?;
    let image = fetch::resolve(&apt, recipe, DebSet::Image)?;
    ui.work("asking the npm registry");
    let bun = newest_npm(&recipe.npm.bun)?;
    let mut newest = |names: &[String]| names.iter().map(|name| newest_wheel(name, recipe, cache, ui)).collect();
    let wheels: Result<_> = newest(&recipe.pypi.wheels);
    let qemu_wheels: Result<_> = newest(&recipe.pypi.qemu_wheels);
    Ok(Lock { bun, wheels: wheels?, qemu_wheels: qemu_wheels?, kernel, qemu, tools, image })
}

fn newest_npm(name: &str) -> Result<NpmPackage> {
    let answer = tools::capture(fetch::npm().args(["view", "--json", name, "version", "dist.integrity"]))
        .with_context(|| format!("cannot look up {name}"))?;
    let NpmView { version, integrity } =
        serde_json::from_str(&answer).with_context(|| format!("npm says something else of {name}: {answer}"))?;
    Ok(NpmPackage { name: name.to_owned(), version, integrity })
}

/// The newest wheel that a requirement allows.
fn newest_wheel(requirement: &str, recipe: &Recipe, cache: &Cache, ui: &mut Ui) -> Result<Wheel> {
    let name = requirement.split("==").next().unwrap_or(requirement);
    ui.work(&format!("fetching the newest {name}"));
    let dir = cache.scratch("wheel")?;
    tools::run(fetch::pip_download(&recipe.pypi.platform, &dir).arg(requirement), &cache.logs(), ui)
        .with_context(|| format!("cannot fetch {name}"))?;
    let file = fetch::only_file(&dir)?;
    let sha256 = fetch::sha256(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let file = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let version = file.split('-').nth(1).with_context(|| format!("{file} is not named like a wheel"))?;
    ensure!(file.ends_with(".whl"), "{file} is not a wheel");
    Ok(Wheel { name: name.to_owned(), version: version.to_owned(), sha256 })
}

fn write_atomically(path: &Path, text: &str) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, text)?;
    fs::rename(temporary, path)
}
