//! What of the host matters to fault tolerance on KVM, and what to do where it is missing.

use serde::Serialize;

use super::host::{HostFacts, HugePages, KvmAccess, KvmFacts};

/// Whether a feature is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FeatureState {
    /// The host has it.
    Present,
    /// It is not, and what depends on it is slower or not offered.
    Missing,
    /// It cannot be found out without /dev/kvm.
    Unknown,
}

/// One feature of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// Its name, one word with hyphens.
    pub name: &'static str,
    /// Whether it is there.
    pub state: FeatureState,
    /// More about what is there, if there is more to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What it is for.
    pub purpose: &'static str,
    /// Where it is missing: what that means, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<&'static str>,
}

const KVM_MISSING: &str = "load the module: `modprobe kvm_intel` or `modprobe kvm_amd`";
const VIRTUALIZATION_MISSING: &str =
    "switch VT-x or AMD-V on in the firmware; in a virtual machine, have its provider enable nested virtualization";
const KVM_DENIED: &str =
    "give the user the device: `usermod -aG kvm USER`, then log in again; in a container, pass /dev/kvm in";
const KVM_FAILED: &str = "the kernel's log may say why: `dmesg | grep -i kvm`";

/// Judges what was found.
pub fn features(host: &HostFacts) -> Vec<Feature> {
    let mut features = vec![access(host)];
    let kvm = match &host.kvm {
        KvmAccess::Open(kvm) => Some(kvm),
        KvmAccess::Missing | KvmAccess::Denied | KvmAccess::Failed(_) => None,
    };
    features.extend(of_kvm(kvm));
    features.push(feature(
        "invariant-tsc",
        "guests tell the time without leaving the processor",
        Some(host.has_invariant_tsc),
        host.clock_source.as_ref().map(|name| format!("the host's clock source is {name}")),
        "guests should keep kvm-clock as their clock source; a virtual machine's provider may be able to pass it through",
    ));
    features.push(huge_pages(&host.huge_pages));
    features
}

fn access(host: &HostFacts) -> Feature {
    let (value, hint) = match &host.kvm {
        KvmAccess::Open(_) => (None, ""),
        KvmAccess::Missing if host.has_virtualization => (None, KVM_MISSING),
        KvmAccess::Missing => (None, VIRTUALIZATION_MISSING),
        KvmAccess::Denied => (Some("permission denied".to_owned()), KVM_DENIED),
        KvmAccess::Failed(why) => (Some(why.clone()), KVM_FAILED),
    };
    let is_open = matches!(host.kvm, KvmAccess::Open(_));
    feature("kvm-access", "the kvm engine", Some(is_open), value, hint)
}

fn of_kvm(kvm: Option<&KvmFacts>) -> [Feature; 6] {
    let has = |has: fn(&KvmFacts) -> bool| kvm.map(has);
    let entries = kvm.map(|kvm| kvm.dirty_ring_entries_max).filter(|&entries| entries > 0);
    let xsave_bytes = kvm.and_then(|kvm| kvm.xsave_bytes);
    [
        feature(
            "dirty-ring",
            "changed pages are listed while the guest runs",
            has(|kvm| kvm.dirty_ring_entries_max > 0),
            entries.map(|entries| format!("up to {entries} entries for each vCPU")),
            "Linux 5.11 has it, on processors with EPT or NPT; without it changed pages are found in a bitmap of all memory",
        ),
        feature(
            "manual-protect",
            "the bitmap of changed pages is read without stopping the guest",
            has(|kvm| kvm.has_manual_protect),
            None,
            "Linux 5.3 has it; without it pauses grow with the guest's memory",
        ),
        feature(
            "tsc-scaling",
            "a VM keeps its time-stamp counter's rate on a host with another one",
            has(|kvm| kvm.has_tsc_scaling),
            None,
            "the processor has to offer it, in a virtual machine also its provider; without it, give VMs secondaries on hosts of the same rate",
        ),
        feature(
            "xsave",
            "guests use AVX, and it is saved and mirrored",
            has(|kvm| kvm.xsave_bytes.is_some()),
            xsave_bytes.map(|bytes| format!("up to {bytes} bytes for each vCPU")),
            "the processor has to offer it, in a virtual machine also its provider; without it guests have SSE only",
        ),
        feature(
            "ioeventfd",
            "a guest's disk and network requests do not hold its vCPU",
            has(|kvm| kvm.has_ioeventfd),
            None,
            "every KVM on hardware has it (Linux 2.6.32); this one may be an emulation",
        ),
        feature(
            "irqfd",
            "interrupts reach the guest from any thread without a system call for each level",
            has(|kvm| kvm.has_irqfd),
            None,
            "every KVM on hardware has it (Linux 2.6.32); this one may be an emulation",
        ),
    ]
}

fn huge_pages(pages: &HugePages) -> Feature {
    let is_given = pages.shared_memory.as_deref().is_some_and(|when| !matches!(when, "never" | "deny"));
    let mut values = Vec::new();
    values.extend(pages.shared_memory.as_ref().map(|when| format!("transparent for shared memory: {when}")));
    if pages.reserved_free > 0 {
        values.push(format!("{} MiB reserved and free", pages.reserved_free.saturating_mul(2)));
    }
    feature(
        "huge-pages",
        "guests with much memory run faster",
        Some(is_given || pages.reserved_free > 0),
        Some(values.join("; ")).filter(|value| !value.is_empty()),
        "`echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled`, as root; make it permanent with tmpfiles.d",
    )
}

/// A feature; the hint is for where it is missing.
fn feature(
    name: &'static str,
    purpose: &'static str,
    is_there: Option<bool>,
    value: Option<String>,
    hint: &'static str,
) -> Feature {
    let state = match is_there {
        Some(true) => FeatureState::Present,
        Some(false) => FeatureState::Missing,
        None => FeatureState::Unknown,
    };
    let hint = (state == FeatureState::Missing).then_some(hint);
    Feature { name, state, value, purpose, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(kvm: KvmAccess) -> HostFacts {
        HostFacts {
            kvm,
            has_virtualization: true,
            has_invariant_tsc: true,
            clock_source: Some("tsc".to_owned()),
            huge_pages: HugePages { shared_memory: Some("advise".to_owned()), reserved_free: 0 },
        }
    }

    fn of<'a>(features: &'a [Feature], name: &str) -> &'a Feature {
        features.iter().find(|feature| feature.name == name).unwrap()
    }

    #[test]
    fn a_host_that_has_everything_gets_no_hints() {
        let kvm = KvmFacts {
            dirty_ring_entries_max: 65536,
            has_manual_protect: true,
            has_tsc_scaling: true,
            has_irqfd: true,
            has_ioeventfd: true,
            xsave_bytes: Some(11008),
        };
        let features = features(&host(KvmAccess::Open(kvm)));
        assert!(features.iter().all(|feature| feature.state == FeatureState::Present && feature.hint.is_none()));
        assert!(of(&features, "dirty-ring").value.as_ref().unwrap().contains("65536"));
        assert!(of(&features, "xsave").value.as_ref().unwrap().contains("11008"));
    }

    #[test]
    fn what_is_missing_comes_with_a_hint() {
        let bare = HostFacts {
            has_invariant_tsc: false,
            clock_source: None,
            huge_pages: HugePages { shared_memory: Some("never".to_owned()), reserved_free: 0 },
            ..host(KvmAccess::Open(KvmFacts::default()))
        };
        let features = features(&bare);
        assert_eq!(of(&features, "kvm-access").state, FeatureState::Present);
        for feature in features.iter().filter(|feature| feature.name != "kvm-access") {
            assert_eq!(feature.state, FeatureState::Missing, "{feature:?}");
            assert!(feature.hint.is_some_and(|hint| hint.len() > 30), "{feature:?}");
        }
    }

    #[test]
    fn without_access_the_hint_says_how_to_get_it_and_nothing_else_is_guessed() {
        for (kvm, has_virtualization, says) in [
            (KvmAccess::Missing, true, "modprobe"),
            (KvmAccess::Missing, false, "firmware"),
            (KvmAccess::Denied, true, "usermod -aG kvm"),
            (KvmAccess::Failed("out of memory".to_owned()), true, "dmesg"),
        ] {
            let features = features(&HostFacts { has_virtualization, ..host(kvm) });
            let access = of(&features, "kvm-access");
            assert!(access.state == FeatureState::Missing && access.hint.unwrap().contains(says), "{access:?}");
            assert_eq!(of(&features, "dirty-ring").state, FeatureState::Unknown);
            assert_eq!(of(&features, "invariant-tsc").state, FeatureState::Present);
        }
    }

    #[test]
    fn reserved_pages_are_huge_pages_too() {
        let reserved = HugePages { shared_memory: Some("never".to_owned()), reserved_free: 512 };
        let found = huge_pages(&reserved);
        assert_eq!(found.state, FeatureState::Present);
        assert!(found.value.unwrap().ends_with("1024 MiB reserved and free"));
    }
}
