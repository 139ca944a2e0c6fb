//! The guest's assets: from the lock file to a published image.
//!
//! Each step has a key over everything that shapes its result and looks into the cache first, so a second run builds nothing. What a
//! step does is in its own module; their order, and what becomes of their results, is here.

mod agent;
mod apt;
mod cache;
mod dpkg;
mod fetch;
mod kconfig;
mod kernel;
mod lock;
mod patches;
mod places;
mod progress;
mod qemu;
mod recipe;
mod registries;
mod root;
mod tools;
mod update;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use exec_sandbox_image::{BlobSources, ImageStore, Interpreter, Manifest, Package, Pruned, Qemu};

use cache::{Artefact, Cache};
use fetch::Fetcher;
use lock::Lock;
use places::Places;
use progress::Report;
use recipe::Recipe;
use registries::Registries;

/// How to build the assets.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Fail when the mirror no longer has a pinned package, instead of taking its successor
    #[arg(long)]
    locked: bool,
    /// Resolve everything anew and write assets/assets.lock.toml, building nothing
    #[arg(long, conflicts_with_all = ["locked", "print"])]
    update_lock: bool,
    /// Show what is published, building nothing
    #[arg(long, conflicts_with = "locked")]
    print: bool,
}

/// `cargo xtask assets`.
pub(crate) fn run(options: &Options) -> Result<()> {
    let places = Places::find()?;
    let recipe = Recipe::load(&places.assets)?;
    if options.print {
        return print(&places, &recipe);
    }
    let cache = Cache::open(&places.cache)?;
    if options.update_lock {
        return update::update_lock(&places, &recipe, &cache);
    }
    build(&places, &recipe, &cache, options.locked)
}

/// `cargo xtask agent`.
pub(crate) fn run_agent() -> Result<()> {
    let places = Places::find()?;
    let recipe = Recipe::load(&places.assets)?;
    let cache = Cache::open(&places.cache)?;
    let store = ImageStore::at(&places.images);
    let published = store
        .load(&recipe.image.name)
        .and_then(|image| image.verify_fully())
        .context("there is no whole image to put the agent into: run `cargo xtask assets`")?;
    let mut report = Report::new();
    let agent = report.step("agent", |ui| agent::ensure(&places, &cache, ui))?;
    let mut manifest = published.manifest().clone();
    manifest.initramfs = agent.blob(agent::INITRAMFS)?;
    let (kernel, root) = (published.kernel(), published.root());
    let initramfs = agent.path(agent::INITRAMFS);
    report.step("publish", |ui| {
        let sources = BlobSources { kernel: &kernel, initramfs: &initramfs, root: &root, qemu: None };
        publish(&store, &manifest, sources, ui)
    })?;
    report.summary();
    Ok(())
}

fn build(places: &Places, recipe: &Recipe, cache: &Cache, locked: bool) -> Result<()> {
    let lock = Lock::load(&places.assets).context("run `cargo xtask assets --update-lock` to make one")?;
    let mut fetcher = Fetcher::new(cache, recipe, lock, locked)?;
    let mut report = Report::new();
    let kernel = report.step("kernel", |ui| kernel::ensure(places, cache, &mut fetcher, ui))?;
    let qemu = report.step("qemu", |ui| qemu::ensure(places, cache, &mut fetcher, ui))?;
    let agent = report.step("agent", |ui| agent::ensure(places, cache, ui))?;
    let root = report.step("root", |ui| root::ensure(places, recipe, cache, &mut fetcher, ui))?;
    let store = ImageStore::at(&places.images);
    let published = store.load(&recipe.image.name).map_or_else(
        |_| Registries::default(),
        |image| {
            let Manifest { registries, indexes, .. } = image.manifest().clone();
            Registries { hosts: registries, indexes }
        },
    );
    let Registries { hosts, indexes } =
        report.step("registries", |ui| registries::ensure(fetcher.lock(), &published, cache, ui))?;
    let of_qemu = Some(qemu_of(&qemu)?);
    let manifest = Manifest { registries: hosts, indexes, qemu: of_qemu, ..manifest(recipe, &kernel, &agent, &root)? };
    let (kernel, initramfs, root) =
        (kernel.path(kernel::VMLINUX), agent.path(agent::INITRAMFS), root.path(root::EROFS));
    report.step("publish", |ui| {
        let sources = BlobSources { kernel: &kernel, initramfs: &initramfs, root: &root, qemu: Some(qemu.dir()) };
        publish(&store, &manifest, sources, ui)
    })?;
    cache.trim(&fetcher.pinned_digests())?;
    report.summary();
    fetcher.warn_if_moved();
    print(places, recipe)
}

fn manifest(recipe: &Recipe, kernel: &Artefact, agent: &Artefact, root: &Artefact) -> Result<Manifest> {
    let packages = dpkg::from_text(root.fact(root::PACKAGES)?);
    let mut languages = BTreeMap::new();
    for (language, interpreter) in &recipe.image.languages {
        let package = packages.iter().find(|package| package.name == interpreter.package);
        let package = package.with_context(|| {
            format!("{language} takes its version from {:?}, which is not in the root file system", interpreter.package)
        })?;
        let version = dpkg::upstream_version(&package.version).to_owned();
        languages.insert(language.clone(), Interpreter { path: interpreter.path.clone(), version });
    }
    Ok(Manifest {
        format: Manifest::FORMAT,
        name: recipe.image.name.clone(),
        arch: recipe.image.arch.clone(),
        kernel_version: kernel.fact(kernel::RELEASE)?.to_owned(),
        kernel: kernel.blob(kernel::VMLINUX)?,
        initramfs: agent.blob(agent::INITRAMFS)?,
        root: root.blob(root::EROFS)?,
        languages,
        packages: packages
            .into_iter()
            .map(|package| Package { name: package.name, version: package.version })
            .collect(),
        registries: BTreeMap::new(),
        indexes: BTreeMap::new(),
        qemu: None,
    })
}

fn qemu_of(artefact: &Artefact) -> Result<Qemu> {
    let firmware = qemu::FIRMWARE.iter().map(|name| Ok(((*name).to_owned(), artefact.blob(name)?)));
    Ok(Qemu {
        version: artefact.fact(qemu::VERSION)?.to_owned(),
        program: artefact.blob(qemu::PROGRAM)?,
        firmware: firmware.collect::<Result<_>>()?,
    })
}

/// Publishes the image unless exactly this one is in place and whole.
fn publish(store: &ImageStore, manifest: &Manifest, sources: BlobSources<'_>, ui: &mut progress::Ui) -> Result<()> {
    let in_place =
        store.load(&manifest.name).is_ok_and(|image| image.manifest() == manifest && image.verify_fully().is_ok());
    if in_place {
        return Ok(());
    }
    ui.work("storing the image");
    store.publish(manifest, sources).context("cannot publish the image")?;
    let Pruned { files, size_bytes } = store.prune().context("cannot remove blobs of earlier images")?;
    if files > 0 {
        ui.note(&format!("removed {files} blobs of earlier images ({} MB)", size_bytes / 1_000_000));
    }
    Ok(())
}

fn print(places: &Places, recipe: &Recipe) -> Result<()> {
    let store = ImageStore::at(&places.images);
    let image = store.load(&recipe.image.name).context("nothing is published: run `cargo xtask assets`")?;
    let image = image.verify_fully().context("what is published is damaged: run `cargo xtask assets`")?;
    progress::show_image(&places.images, &image);
    Ok(())
}
