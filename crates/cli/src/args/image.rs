//! The command line of images.

use clap::{Args, Subcommand};

const PULL_NOTES: &str = "\
URL_OR_DIR is an https, http or file URL or a directory, laid out like a store of images. What is there and whole is not fetched \
again; what was interrupted goes on. Every byte is checked before the image appears.

Exit code: 0 the image is there; 2 wrong usage; 125 it could not be had, or is damaged there; 130 interrupted.";

const PRUNE_NOTES: &str = "\
What no image here consists of goes; while one is fetched, nothing does. A process that has started with an image which was \
replaced since may make no more VMs: end a service first (`sbx down`).

Exit code: 0 done; 2 wrong usage; 125 an image's manifest cannot be read, so nothing is removed, or something cannot be removed.";

#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    pub(crate) command: ImageCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// List the images on this host
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Fetch an image from where images are published, or mend one
    #[command(after_help = PULL_NOTES)]
    Pull(PullArgs),
    /// Remove what is left of images that were replaced, and of fetches that were interrupted
    #[command(after_help = PRUNE_NOTES)]
    Prune {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// The image [default: standard]
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Where images are published [default: $EXEC_SANDBOX_ASSETS_URL]
    #[arg(long, value_name = "URL_OR_DIR")]
    pub(crate) from: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// No progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
}
