//! The options of packages: which are let in, and where they come from.

use std::path::PathBuf;

use clap::Args;
use exec_sandbox::{Language, SchedulerConfig};

#[derive(Debug, Args)]
pub(crate) struct PackageArgs {
    /// Install packages also by names that are not among the most used
    #[arg(long)]
    no_validation: bool,
    /// The index that the packages of a language come from; may be repeated [default: the environment's or the image's]
    #[arg(long, value_name = "LANGUAGE=URL", value_parser = index)]
    package_index: Vec<(Language, String)>,
    /// Certificates, in PEM, that indexes are known by [default: $EXEC_SANDBOX_PACKAGE_CA or this host's]
    #[arg(long, value_name = "FILE", value_parser = file)]
    package_ca: Option<PathBuf>,
}

impl PackageArgs {
    /// `config` with what was typed put over it.
    pub(crate) fn over(&self, mut config: SchedulerConfig) -> SchedulerConfig {
        config.package_validation &= !self.no_validation;
        config.package_indexes.extend(self.package_index.iter().cloned());
        if self.package_ca.is_some() {
            config.package_ca.clone_from(&self.package_ca);
        }
        config
    }
}

fn index(typed: &str) -> Result<(Language, String), String> {
    let (language, url) = typed.split_once('=').ok_or_else(|| "it lacks `=`: write LANGUAGE=URL".to_owned())?;
    match language.parse().map_err(|error: exec_sandbox::UnknownLanguage| error.to_string())? {
        Language::Raw => Err("raw has no packages".into()),
        language => Ok((language, url.to_owned())),
    }
}

/// A file by a name that stays its own: the service in the background is somewhere else.
fn file(typed: &str) -> Result<PathBuf, String> {
    std::path::absolute(typed).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        packages: PackageArgs,
    }

    fn read(options: &[&str]) -> Result<SchedulerConfig, String> {
        let command = Command::try_parse_from([&["sbx"], options].concat()).map_err(|error| error.to_string())?;
        Ok(command.packages.over(SchedulerConfig::default()))
    }

    #[test]
    fn where_packages_come_from_reaches_the_configuration() {
        let url = |name: &str| format!("https://{name}.example/?a=b");
        let [one, other] = ["python", "javascript"].map(|language| format!("{language}={}", url(language)));
        let indexes = ["--package-index", &one, "--package-index", &other];
        let rest = ["--no-validation", "--package-ca", "ca.pem"];
        let config = read(&[&indexes[..], &rest].concat()).expect("they are options");
        let expected = [(Language::Python, url("python")), (Language::JavaScript, url("javascript"))];
        assert_eq!(config.package_indexes, expected.into());
        assert!(!config.package_validation);
        assert!(config.package_ca.is_some_and(|path| path.is_absolute() && path.ends_with("ca.pem")));
    }

    #[test]
    fn what_is_not_typed_is_left_to_the_library() {
        let (config, default) = (read(&[]).expect("there is nothing"), SchedulerConfig::default());
        assert_eq!((config.package_validation, config.package_ca), (default.package_validation, default.package_ca));
        assert_eq!(config.package_indexes, default.package_indexes);
    }

    #[test]
    fn what_is_no_index_of_a_language_is_told() {
        for (typed, why) in
            [("https://a.example", "LANGUAGE=URL"), ("cobol=x", "cobol"), ("raw=x", "raw has no packages")]
        {
            let error = read(&["--package-index", typed]).expect_err(why);
            assert!(error.contains(why), "{why}: {error}");
        }
    }
}
