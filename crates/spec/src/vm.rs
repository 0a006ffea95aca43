//! The VM spec: what a TOML file says a VM is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    ByteSize, CpuLevel, DatastoreName, DiskFormat, EngineChoice, HugePages, MemoryBacking, NetworkSpec, Priority,
    Protection, Translator, VmId, VmName,
};

/// Fewest bytes of memory a VM can have: below this Debian's kernel does not unpack.
pub const MEMORY_BYTES_MIN: u64 = 64 << 20;
/// Most bytes of memory a VM can have.
pub const MEMORY_BYTES_MAX: u64 = 1 << 40;
/// Most vCPUs of a VM.
pub const VCPUS_MAX: u32 = 64;
/// Most disks and network cards of a VM, together.
pub const DEVICES_MAX: usize = 15;

/// A VM, as its TOML file describes it. Relative paths are relative to that file.
///
/// ```toml
/// name = "redis"
/// cpus = 1
/// memory = "512M"
/// kernel = "vmlinuz"
/// initrd = "initrd.img"
/// cmdline = "console=ttyS0 root=/dev/vda"
///
/// [[disk]]
/// path = "root.qcow2"
/// format = "qcow2"
///
/// [[network]]
/// mode = "user"
/// forward = ["tcp:127.0.0.1:6379-:6379"]
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Name: 1 to 63 letters, digits, `-`, `_` or `.`, starting with a letter or digit.
    pub name: String,
    /// Which VM this is: chosen when a VM is created that has a host, and anew for a clone. A guest of an image has it as its machine-id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<VmId>,
    /// Number of vCPUs.
    #[serde(default = "one")]
    pub cpus: u32,
    /// Memory, such as `512M` or `2G`; a whole number of MiB.
    pub memory: ByteSize,
    /// What the host makes the memory of: `"off"`, `"transparent"` (pages of 2 MiB where it finds some) or `"hugetlbfs"` (its pool of huge
    /// pages). A guest sees no difference.
    #[serde(default, skip_serializing_if = "is_off")]
    pub huge_pages: HugePages,
    /// The NUMA node of the host whose memory is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<u32>,
    /// Which of several VMs comes first where not all can at once, as after the loss of a host: `"highest"`, `"high"`, `"medium"`, `"low"` or `"lowest"`.
    #[serde(default, skip_serializing_if = "is_medium")]
    pub priority: Priority,
    /// What becomes of it when its host is lost: `"none"`, `"ha"` or `"ft"`. It says how the VM is created; later it is changed by `twinvm vm set` and
    /// `twinvm ft`. High availability (`"ha"`) needs all disks that are not read-only on datastores that hosts share.
    #[serde(default, skip_serializing_if = "is_unprotected")]
    pub protection: Protection,
    /// Which engine runs the vCPUs.
    #[serde(default)]
    pub engine: EngineChoice,
    /// Whether the soft engine translates hot code to host code: `"on"` or `"off"`. A guest sees no difference but speed. It is off by default,
    /// as it is new.
    #[serde(default, skip_serializing_if = "interprets")]
    pub translator: Translator,
    /// How much of a processor the guest gets: `portable`, `x86-64-v3` or `host`. More than `portable` needs the kvm engine, and a
    /// secondary's host has to have as much.
    #[serde(default)]
    pub cpu: CpuLevel,
    /// An image made by `twinvm image build`, which gives the kernel, the initrd and the command line unless they are named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Linux kernel: bzImage or vmlinux.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Folder in which `twinvm run` keeps what `twinvm replay` repeats the VM's life from: a snapshot at each power-on, and the log of all that
    /// reaches the guest from outside. It needs the soft engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<PathBuf>,
    /// Disks: the first is /dev/vda.
    #[serde(default, rename = "disk", skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskSpec>,
    /// Network cards: the first is eth0.
    #[serde(default, rename = "network", skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<NetworkSpec>,
}

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// The image file.
    pub path: PathBuf,
    /// Its format; found out from the file if it is not named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub readonly: bool,
    /// The datastore that keeps it; none for the VM's folder on each of its hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datastore: Option<DatastoreName>,
    /// An image made by `twinvm image build` whose root disk this one starts as: if `path` does not exist, it is created as a
    /// qcow2 overlay of that root disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_image: Option<String>,
}

fn one() -> u32 {
    1
}

fn is_off(huge_pages: &HugePages) -> bool {
    *huge_pages == HugePages::Off
}

fn interprets(translator: &Translator) -> bool {
    *translator == Translator::Off
}

fn is_unprotected(protection: &Protection) -> bool {
    *protection == Protection::None
}

fn is_medium(priority: &Priority) -> bool {
    *priority == Priority::Medium
}

/// Why a spec was refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SpecError {
    /// The file cannot be read.
    #[error("cannot read VM spec {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why the file could not be read.
        source: Arc<std::io::Error>,
    },
    /// Not the TOML of a spec; the message names line and key.
    #[error("VM spec {}: {}", path.display(), one_line(message))]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        message: String,
    },
    /// A value that cannot be.
    #[error("VM spec: {0}")]
    Invalid(String),
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl VmSpec {
    /// What the guest's kernel command line says of which VM it is in, after all else: images of ours make their host name and machine-id of it.
    pub fn identity_parameters(&self) -> String {
        let mut parameters = format!(" twinvm.hostname={}", self.host_name());
        if let Some(id) = self.id {
            parameters += &format!(" twinvm.id={id}");
        }
        parameters
    }

    /// A host name that says the VM's name as well as RFC 1123 lets it.
    fn host_name(&self) -> String {
        let mapped: String = self.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        mapped.trim_matches('-').to_owned()
    }

    /// Reads, parses and validates a spec. Paths in it come back relative to the current directory.
    pub fn load(path: &Path) -> Result<Self, SpecError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| SpecError::Read { path: path.to_owned(), source: Arc::new(source) })?;
        let mut spec = Self::parse(&text).map_err(|error| match error {
            SpecError::Syntax { message, .. } => SpecError::Syntax { path: path.to_owned(), message },
            other => other,
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let paths = spec.disks.iter_mut().map(|disk| &mut disk.path);
        let others = [&mut spec.kernel, &mut spec.initrd, &mut spec.record];
        for file in paths.chain(others.into_iter().flatten()) {
            *file = folder.join(&*file);
        }
        Ok(spec)
    }

    /// Parses and validates a spec; paths stay as written.
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        let spec: Self = toml::from_str(text).map_err(|error| SpecError::Syntax {
            path: PathBuf::from("(text)"),
            message: match error.span() {
                Some(span) => {
                    let line = text.get(..span.start).map_or(0, |before| before.matches('\n').count()) + 1;
                    format!("line {line}: {}", error.message())
                }
                None => error.message().to_owned(),
            },
        })?;
        spec.validate()?;
        Ok(spec)
    }

    /// The choice of an engine that is left: more than the portable processor is to be had on kvm alone, wherever soft is the faster one.
    pub fn engine_choice(&self) -> EngineChoice {
        match self.engine {
            EngineChoice::Auto if self.cpu != CpuLevel::Portable => EngineChoice::Kvm,
            choice => choice,
        }
    }

    /// The datastore that its disks are on, but for read-only ones; none if they are in its folder on each host, or there are none.
    pub fn datastore(&self) -> Option<&DatastoreName> {
        self.disks.iter().find(|disk| !disk.readonly)?.datastore.as_ref()
    }

    /// What the host is to make the memory of.
    pub fn backing(&self) -> MemoryBacking {
        MemoryBacking { huge_pages: self.huge_pages, numa_node: self.numa_node }
    }

    /// Checks what parsing alone cannot, without looking at any file.
    pub fn validate(&self) -> Result<(), SpecError> {
        let invalid = |message: String| Err(SpecError::Invalid(message));
        if let Err(error) = self.name.parse::<VmName>() {
            return invalid(format!("name = {error}"));
        }
        if !(1..=VCPUS_MAX).contains(&self.cpus) {
            return invalid(format!("cpus = {}: must be 1 to {}", self.cpus, VCPUS_MAX));
        }
        let memory = self.memory.bytes();
        if !(MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&memory) || !memory.is_multiple_of(1 << 20) {
            return invalid(format!("memory = \"{}\": must be a whole number of MiB from 64M to 1024G", self.memory));
        }
        if self.kernel.is_none() && self.image.is_none() {
            return invalid(
                "no kernel: name a file with `kernel`, or an image of `twinvm image list` with `image`".into(),
            );
        }
        if self.cpu != CpuLevel::Portable && self.engine == EngineChoice::Soft {
            return invalid(format!(
                "cpu = \"{}\" needs engine = \"kvm\": the software processor is the portable one",
                self.cpu
            ));
        }
        if self.record.is_some() && self.engine_choice() == EngineChoice::Kvm {
            return invalid(
                "record needs engine = \"soft\": with kvm nobody can tell when something reaches the guest".into(),
            );
        }
        let mut written = self.disks.iter().filter(|disk| !disk.readonly);
        if written.any(|disk| disk.datastore.as_ref() != self.datastore()) {
            return invalid("disks that are not read-only are all on one datastore, or none of them is on any".into());
        }
        if self.protection == Protection::Ha && self.datastore().is_none() {
            return invalid(
                "protection = \"ha\" needs its disks on a datastore that hosts share: name it with `datastore`".into(),
            );
        }
        if self.disks.len() + self.networks.len() > DEVICES_MAX {
            return invalid(format!("{DEVICES_MAX} disks and networks together at most"));
        }
        for (index, disk) in self.disks.iter().enumerate() {
            if self
                .disks
                .iter()
                .take(index)
                .any(|earlier| earlier.path == disk.path && !(earlier.readonly && disk.readonly))
            {
                return invalid(format!("disk {} is named twice", disk.path.display()));
            }
            if disk.readonly && disk.datastore.is_some() {
                return invalid(format!("disk {}: read-only disks are on no datastore", disk.path.display()));
            }
            if disk.base_image.is_some() && disk.format != Some(DiskFormat::Qcow2) {
                return invalid(format!("disk {}: base_image needs format = \"qcow2\"", disk.path.display()));
            }
        }
        for network in &self.networks {
            network.validate().map_err(|error| SpecError::Invalid(format!("network: {error}")))?;
        }
        Ok(())
    }
}

/// A spec as TOML.
pub fn to_toml(spec: &VmSpec) -> Result<String, SpecError> {
    toml::to_string(spec).map_err(|error| SpecError::Invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        name = "redis"
        memory = "512M"
        kernel = "vmlinuz"
        [[disk]]
        path = "root.qcow2"
        format = "qcow2"
        [[network]]
        mode = "user"
        forward = ["tcp:127.0.0.1:6379-:6379"]
    "#;

    #[test]
    fn a_spec_survives_being_written_and_read() {
        let spec = VmSpec::parse(GOOD).unwrap();
        assert_eq!((spec.cpus, spec.memory.bytes(), spec.engine), (1, 512 << 20, EngineChoice::Auto));
        assert_eq!(VmSpec::parse(&toml::to_string(&spec).unwrap()).unwrap(), spec);
    }

    #[test]
    fn a_level_of_processor_reads_as_it_is_written() {
        for (text, level) in [("portable", CpuLevel::Portable), ("x86-64-v3", CpuLevel::V3), ("host", CpuLevel::Host)] {
            let spec = VmSpec::parse(&GOOD.replacen("memory =", &format!("cpu = \"{text}\"\nmemory ="), 1)).unwrap();
            assert_eq!((spec.cpu, level.to_string().as_str()), (level, text));
            let left = if level == CpuLevel::Portable { EngineChoice::Auto } else { EngineChoice::Kvm };
            assert_eq!(spec.engine_choice(), left, "{text}");
        }
        assert_eq!(VmSpec::parse(GOOD).unwrap().cpu, CpuLevel::Portable);
    }

    #[test]
    fn each_mistake_is_named_in_one_line() {
        for (change, from, to) in [
            ("unknown field", "memory =", "memroy ="),
            ("unknown field", "path =", "file ="),
            ("unknown variant", "\"qcow2\"\n", "\"vmdk\"\n"),
            ("line 3", "512M", "lots"),
            ("64M to 1024G", "512M", "1M"),
            ("64M to 1024G", "512M", "2048T"),
            ("name =", "name = \"redis\"", "name = \"../x\""),
            ("no kernel", "kernel = \"vmlinuz\"", ""),
            ("needs engine = \"soft\"", "memory =", "record = \"logs\"\nengine = \"kvm\"\nmemory ="),
            ("needs engine = \"soft\"", "memory =", "record = \"logs\"\ncpu = \"host\"\nmemory ="),
            ("needs engine = \"kvm\"", "memory =", "cpu = \"host\"\nengine = \"soft\"\nmemory ="),
            ("unknown variant", "memory =", "cpu = \"x86-64-v9\"\nmemory ="),
            ("must be 1 to", "memory =", "cpus = 0\nmemory ="),
            ("must be 1 to", "memory =", "cpus = 65\nmemory ="),
            ("unknown variant", "memory =", "huge_pages = \"on\"\nmemory ="),
            ("unknown variant", "memory =", "priority = \"urgent\"\nmemory ="),
            ("unknown variant", "memory =", "protection = \"vm\"\nmemory ="),
            ("name it with `datastore`", "memory =", "protection = \"ha\"\nmemory ="),
            ("on no datastore", "format = \"qcow2\"", "readonly = true\ndatastore = \"nfs\""),
            ("line 3", "memory =", "numa_node = -1\nmemory ="),
            ("network", "mode = \"user\"", "mode = \"user\"\nmtu = 9"),
        ] {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD);
            let message = VmSpec::parse(&text).unwrap_err().to_string();
            assert!(message.contains(change), "{message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn memory_is_made_of_what_the_spec_says() {
        assert_eq!(VmSpec::parse(GOOD).unwrap().backing(), MemoryBacking::default());
        let text = GOOD.replacen("memory =", "huge_pages = \"transparent\"\nnuma_node = 1\nmemory =", 1);
        let spec = VmSpec::parse(&text).unwrap();
        assert_eq!(spec.backing(), MemoryBacking { huge_pages: HugePages::Transparent, numa_node: Some(1) });
        assert_eq!(VmSpec::parse(&toml::to_string(&spec).unwrap()).unwrap(), spec);
    }

    #[test]
    fn a_vm_is_of_medium_priority_unless_its_spec_says_another() {
        assert_eq!(VmSpec::parse(GOOD).unwrap().priority, Priority::Medium);
        let spec = VmSpec::parse(&GOOD.replacen("memory =", "priority = \"lowest\"\nmemory =", 1)).unwrap();
        assert_eq!(spec.priority, Priority::Lowest);
        assert_eq!(VmSpec::parse(&toml::to_string(&spec).unwrap()).unwrap(), spec);
    }

    #[test]
    fn a_disk_names_its_datastore() {
        let text = GOOD.replacen("format = \"qcow2\"", "format = \"qcow2\"\ndatastore = \"nfs\"", 1).replacen(
            "memory =",
            "protection = \"ha\"\nmemory =",
            1,
        );
        let spec = VmSpec::parse(&text).unwrap();
        assert_eq!((spec.protection, spec.disks[0].datastore.as_deref()), (Protection::Ha, Some("nfs")));
        assert_eq!(VmSpec::parse(&toml::to_string(&spec).unwrap()).unwrap(), spec);
    }

    #[test]
    fn the_same_disk_twice_is_refused() {
        let text = format!("{GOOD}\n[[disk]]\npath = \"root.qcow2\"\nformat = \"qcow2\"\n");
        assert!(VmSpec::parse(&text).unwrap_err().to_string().contains("twice"));
    }
}
