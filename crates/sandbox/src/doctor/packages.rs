//! Where packages come from, and by which certificates their indexes are known. Without either, VMs that have none run.

use exec_sandbox_image::ImageStore;

use super::{Check, Status, failed, ok, with_causes};
use crate::{
    Error, Language,
    config::Settings,
    layers::{Indexes, Sources},
};

/// The languages that have packages.
const LANGUAGES: [Language; 2] = [Language::Python, Language::JavaScript];

const REMEDY: &str = "name an index in EXEC_SANDBOX_PACKAGE_INDEXES, or use an image that names one";

pub(super) fn check(settings: &Settings) -> Check {
    match sources(settings) {
        Ok(sources) => examine(&sources, settings.package_ca.is_some()),
        Err(error) => Check { status: Status::Warning, ..failed("packages", &error) },
    }
}

/// What a scheduler would find, with nothing of an image that is not there.
fn sources(settings: &Settings) -> Result<Sources, Error> {
    let image = ImageStore::at(&settings.images_dir).load(&settings.config.image).ok();
    let (hosts, by_default) = image.map_or_else(Default::default, |image| {
        let manifest = image.manifest();
        (manifest.registries.clone(), Indexes::of_image(&manifest.indexes))
    });
    let registries = settings.registries.clone().or_those_of(&hosts)?;
    let indexes = (settings.indexes.clone(), by_default);
    Ok(Sources::new(indexes, registries, &settings.config, settings.package_ca.clone()))
}

fn examine(sources: &Sources, is_ca_named: bool) -> Check {
    let told = LANGUAGES.map(|language| (language, sources.told(language).ok()));
    let mut detail: Vec<String> = told
        .iter()
        .map(|(language, place)| match place {
            Some(place) => format!("{language} from {place}"),
            None => format!("{language} from nowhere"),
        })
        .collect();
    detail.push(match sources.authorities_file() {
        None => "no certificates on this host, so those of the installers".into(),
        Some(path) if is_ca_named => format!("certificates in {}", path.display()),
        Some(path) => format!("certificates of this host, {}", path.display()),
    });
    let (is_known, detail) = (told.iter().all(|(_, place)| place.is_some()), detail.join("; "));
    match sources.authorities() {
        Err(error) => {
            let detail = format!("{detail}: {}", with_causes(&error));
            Check { status: Status::Warning, detail, ..failed("packages", &error) }
        }
        Ok(_) if is_known => ok("packages", detail),
        Ok(_) => Check { status: Status::Warning, remedy: Some(REMEDY.into()), ..ok("packages", detail) },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{SchedulerConfig, paths::Environment};

    fn checked(change: impl FnOnce(&mut SchedulerConfig)) -> Check {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (cache_dir, run_dir) = (Some(dir.path().join("cache")), Some(dir.path().join("run")));
        let index = |language: &str| format!("https://user:secret@{language}.example/");
        let package_indexes = BTreeMap::from(LANGUAGES.map(|language| (language, index(language.name()))));
        let mut config = SchedulerConfig { cache_dir, run_dir, package_indexes, ..SchedulerConfig::default() };
        change(&mut config);
        check(&config.resolve(&Environment::default()).expect("it is valid"))
    }

    #[test]
    fn indexes_are_told_with_who_chose_them_and_without_a_password() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let check = checked(|config| config.package_ca = Some(file.path().into()));
        let certificates = format!("certificates in {}", file.path().display());
        let indexes = "python from https://python.example (the configuration); \
                       javascript from https://javascript.example (the configuration)";
        assert_eq!((check.status, check.detail), (Status::Ok, format!("{indexes}; {certificates}")));
    }

    #[test]
    fn certificates_that_cannot_be_read_and_an_index_that_nobody_names_are_worth_a_warning() {
        let check = checked(|config| config.package_ca = Some("/nonexistent/ca.pem".into()));
        assert_eq!(check.status, Status::Warning);
        assert!(check.detail.contains("/nonexistent/ca.pem") && check.remedy.is_some(), "{check:?}");
        let check = checked(|config| drop(config.package_indexes.remove(&Language::JavaScript)));
        assert_eq!((check.status, check.remedy.as_deref()), (Status::Warning, Some(REMEDY)));
        assert!(check.detail.contains("javascript from nowhere"), "{check:?}");
    }
}
