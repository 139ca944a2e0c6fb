//! Guest images: what is in one, how it is stored, and how it is proven to be whole.
//!
//! An image is a manifest and its blobs: kernel, initramfs and root file system, and a QEMU to run them. [`ImageStore`] keeps them, [`Arrival`] brings them in
//! piece by piece, [`Image::verify`] is the only way to the paths a VM may be booted from, and [`cpio`] writes the initramfs. Nothing here
//! starts a process, opens a connection or knows what a VM is.

pub mod cpio;

mod digest;
mod error;
mod manifest;
mod sparse;
mod stamp;
mod store;
mod verify;

pub use digest::{Digest, KeyBuilder, NotADigest};
pub use error::ImageError;
pub use manifest::{Blob, BlobRole, Interpreter, Manifest, ManifestError, Package, Qemu, is_index};
pub use stamp::Stamp;
pub use store::{Arrival, BlobSources, Image, ImageStore, PartialBlob, Pruned};
pub use verify::VerifiedImage;
