//! Registries: the hosts from which a language's package manager installs, which is what its default network reaches.
//!
//! They are nobody's to write down here: the image's maker has asked the package managers, or whoever runs VMs names others.

use std::collections::{BTreeMap, btree_map::Entry};

use exec_sandbox_gateway::policy::AllowList;

use crate::{Error, ErrorKind, Language};

/// What to do where nobody has named any.
const REMEDY: &str = "name the hosts in EXEC_SANDBOX_REGISTRIES (python=a.example,b.example javascript=c.example) or in the \
                      configuration, use an image that names them, or allow domains by their names";

/// The hosts of each language of which they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Registries(BTreeMap<Language, AllowList>);

impl Registries {
    /// Those of the configuration, and for other languages those of `variable`, which is `python=a.example,b.example` for each.
    pub(crate) fn configured(config: &BTreeMap<Language, Vec<String>>, variable: Option<&str>) -> Result<Self, Error> {
        let mut all = BTreeMap::new();
        for entry in variable.unwrap_or_default().split_whitespace() {
            let read = entry.split_once('=').and_then(|(language, hosts)| Some((language.parse().ok()?, hosts)));
            let Some((language, hosts)) = read else {
                let message = format!("reading EXEC_SANDBOX_REGISTRIES: {entry:?} is not a language, `=` and hosts");
                return Err(Error::new(ErrorKind::InvalidConfig, message).remedied_by(REMEDY));
            };
            all.insert(language, hosts_of(language, hosts.split(','))?);
        }
        for (language, hosts) in config {
            all.insert(*language, hosts_of(*language, hosts)?);
        }
        Ok(Self(all))
    }

    /// These, and for other languages those of an image.
    pub(crate) fn or_those_of(mut self, image: &BTreeMap<String, Vec<String>>) -> Result<Self, Error> {
        for (name, hosts) in image {
            // An image may know a language that this program does not.
            let Ok(language) = name.parse() else { continue };
            if let Entry::Vacant(place) = self.0.entry(language) {
                place.insert(hosts_of(language, hosts)?);
            }
        }
        Ok(self)
    }

    /// The hosts of `language`.
    pub(crate) fn of(&self, language: Language) -> Result<&AllowList, Error> {
        self.0.get(&language).ok_or_else(|| {
            let message =
                format!("finding the package registries of {language}: neither the image nor anybody else names them");
            Error::new(ErrorKind::InvalidConfig, message).remedied_by(REMEDY)
        })
    }
}

fn hosts_of<S: AsRef<str>>(language: Language, hosts: impl IntoIterator<Item = S>) -> Result<AllowList, Error> {
    AllowList::new(hosts).map_err(|error| {
        Error::new(ErrorKind::InvalidConfig, format!("reading the package registries of {language}"))
            .because(error)
            .remedied_by(REMEDY)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(registries: &Registries, language: Language) -> Option<Vec<String>> {
        registries.of(language).ok().map(|list| list.clone().into())
    }

    fn map<K: Ord>(entries: impl IntoIterator<Item = (K, &'static str)>) -> BTreeMap<K, Vec<String>> {
        entries.into_iter().map(|(language, host)| (language, vec![host.to_owned()])).collect()
    }

    #[test]
    fn the_configuration_comes_first_then_the_environment_then_the_image() {
        let image = map([
            ("python".to_owned(), "i.example"),
            ("javascript".to_owned(), "i.example"),
            ("cobol".to_owned(), "i.example"),
        ]);
        let none = BTreeMap::new();
        let only_image = Registries::default().or_those_of(&image).expect("they are hosts");
        assert_eq!(hosts(&only_image, Language::Python), Some(vec!["i.example".into()]));
        assert_eq!(hosts(&only_image, Language::Raw), None);
        let variable = Some("python=E.example,f.example");
        let all =
            Registries::configured(&none, variable).and_then(|it| it.or_those_of(&image)).expect("they are hosts");
        assert_eq!(hosts(&all, Language::Python), Some(vec!["e.example".into(), "f.example".into()]));
        assert_eq!(hosts(&all, Language::JavaScript), Some(vec!["i.example".into()]));
        let config = map([(Language::Python, "c.example")]);
        let all = Registries::configured(&config, variable).expect("they are hosts");
        assert_eq!(hosts(&all, Language::Python), Some(vec!["c.example".into()]));
    }

    #[test]
    fn what_is_no_host_and_what_is_no_language_is_told_before_anything_runs() {
        for variable in ["python", "cobol=a.example", "python=", "python=a.example,", "python=http://a.example"] {
            let error = Registries::configured(&BTreeMap::new(), Some(variable)).expect_err(variable);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(error.remedy().is_some());
        }
        let nothing = BTreeMap::from([(Language::Python, Vec::new())]);
        assert!(Registries::configured(&nothing, None).is_err());
    }
}
