//! Relatives: snapshots of guests that ran the same code as another will, which spare it the translation.
//!
//! A translation is found by the code that it was made of, so any will do that the same QEMU made for the same emulated processor, whatever
//! memory or devices its guest had. Only one in which packages have run is believed by nobody who has not asked for the same: it is
//! code of the host, and theirs could have had a part in it.

use std::sync::Arc;

use super::{Key, Parts, Store, Template, error::Trouble, template::Claimed};
use crate::cache_dir::entries;

/// The option of QEMU that says which processor is emulated.
const PROCESSOR: &str = "-cpu";

impl Store {
    /// Of the snapshots whose guests ran much of what one of `parts` will, the one with the fewest translations: it is proven
    /// soonest, and has the code that guests of all kinds run.
    pub(crate) fn relative(&self, parts: &Parts) -> Option<Arc<Template>> {
        if !self.is_there().unwrap_or(false) {
            return None;
        }
        let snapshots = entries(&self.dir).into_iter();
        let relatives = snapshots.filter_map(|snapshot| {
            let key = snapshot.file_name().to_str()?.parse().ok().filter(|key| !self.refused().contains(key))?;
            let claimed = Claimed::open(&snapshot.path(), key).ok()??;
            let length_bytes = claimed.translations_bytes()?;
            claimed.parts().is_relative_of(parts).then_some((length_bytes, key))
        });
        let mut relatives: Vec<(u64, Key)> = relatives.collect();
        relatives.sort_unstable();
        relatives.into_iter().find_map(|(_, key)| match self.open(key) {
            Ok(template) => template.map(Arc::new),
            Err(Trouble::Damaged(damage)) => {
                self.set_aside(key, &damage);
                None
            }
            Err(Trouble::Failed(_)) => None,
        })
    }
}

impl Parts {
    fn is_relative_of(&self, other: &Self) -> bool {
        // Taken apart, so that a part that is added is not forgotten here.
        let Self {
            format,
            generation: _,
            kernel,
            initramfs: _,
            root,
            qemu,
            accelerator,
            host_cpu,
            machine,
            memory_mib: _,
            language,
            packages,
            layer,
            is_preloaded,
        } = self;
        let is_nobodys = packages.is_empty() && layer.is_none() && !is_preloaded;
        // These have to be the same.
        (format, qemu, accelerator, host_cpu) == (&other.format, &other.qemu, &other.accelerator, &other.host_cpu)
            && processor(machine) == processor(&other.machine)
            && (is_nobodys || (packages, layer, is_preloaded) == (&other.packages, &other.layer, &other.is_preloaded))
            // And without these little would be found.
            && (kernel, root, language) == (&other.kernel, &other.root, &other.language)
    }
}

/// The processor in the arguments of a machine.
fn processor(machine: &[String]) -> Option<&String> {
    machine.iter().skip_while(|word| *word != PROCESSOR).nth(1)
}
