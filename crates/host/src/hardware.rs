//! Disks and network cards of a VM, as they are shown.

use api::messages::{CardView, DiskView};
use spec::{DiskSpec, MacAddr, NetworkSpec, VmSpec};

/// The disks, of which the VM's home says `local`, if it answers.
pub fn disks(spec: &VmSpec, local: Option<&[DiskView]>) -> Vec<DiskView> {
    let view = |(number, disk): (usize, &DiskSpec)| {
        let found = local.and_then(|disks| disks.get(number)).cloned().unwrap_or_default();
        if disk.readonly {
            // The same file on every host.
            return DiskView { path: Some(disk.path.clone()), format: disk.format, readonly: true, ..found };
        }
        found
    };
    spec.disks.iter().enumerate().map(view).collect()
}

/// The network cards.
pub fn cards(spec: &VmSpec) -> Vec<CardView> {
    let view = |(number, network): (u32, &NetworkSpec)| {
        let mac = network.mac().unwrap_or_else(|| MacAddr::for_vm(&spec.name, number));
        match network {
            NetworkSpec::User(user) => {
                CardView { mac, bridge: None, address: Some(user.guest_addr()), forward: user.forward.clone() }
            }
            NetworkSpec::Bridge(bridge) => {
                CardView { mac, bridge: Some(bridge.bridge.clone()), address: None, forward: Vec::new() }
            }
        }
    };
    (0..).zip(&spec.networks).map(view).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use spec::DiskFormat;

    use super::*;

    fn spec() -> VmSpec {
        VmSpec::parse(
            "name = \"shop\"\nmemory = \"128M\"\nkernel = \"k\"\n\
             [[disk]]\npath = \"/never/there.qcow2\"\nformat = \"qcow2\"\nbase_image = \"redis\"\n\
             [[disk]]\npath = \"/data/shared.img\"\nformat = \"raw\"\nreadonly = true\n\
             [[network]]\nmode = \"user\"\nforward = [\"tcp:127.0.0.1:6379-:6379\"]\n\
             [[network]]\nmode = \"bridge\"\nbridge = \"br0\"\nmac = \"52:54:00:00:00:01\"\n",
        )
        .unwrap()
    }

    /// The path that was shown was that of the spec, where no file has ever been.
    #[test]
    fn disks_are_shown_where_they_are_with_their_size() {
        let own = DiskView {
            path: Some(PathBuf::from("/data/vms/shop/disk0.qcow2")),
            format: Some(DiskFormat::Qcow2),
            size_bytes: Some(2 << 30),
            allocated_bytes: Some(1 << 20),
            readonly: false,
            base: Some(PathBuf::from("/images/root.img")),
        };
        let shared = DiskView { size_bytes: Some(4096), ..DiskView::default() };
        let seen = disks(&spec(), Some(&[own.clone(), shared]));
        assert_eq!(seen[0], own);
        assert_eq!((seen[1].path.as_deref(), seen[1].size_bytes), (Some("/data/shared.img".as_ref()), Some(4096)));
        assert!(seen[1].readonly);
        let unknown = disks(&spec(), None);
        assert_eq!((unknown.len(), &unknown[0]), (2, &DiskView::default()));
    }

    #[test]
    fn cards_are_shown_with_their_addresses() {
        let seen = cards(&spec());
        assert_eq!(seen[0].mac, MacAddr::for_vm("shop", 0));
        assert_eq!(seen[0].address.unwrap().to_string(), "10.0.2.15");
        assert_eq!(seen[0].forward.len(), 1);
        assert_eq!((seen[1].mac.to_string().as_str(), seen[1].bridge.as_deref()), ("52:54:00:00:00:01", Some("br0")));
    }
}
