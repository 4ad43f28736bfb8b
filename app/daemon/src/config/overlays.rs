/// The ways in which frames may go to other peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlays {
    /// VXLAN by the kernel, where it can.
    pub fastdp: bool,
    /// The fast encrypted overlay.
    pub warp: bool,
    /// The encapsulation of 2.8.1, which every peer has.
    pub sleeve: bool,
}

impl Default for Overlays {
    fn default() -> Overlays {
        Overlays { fastdp: true, warp: true, sleeve: true }
    }
}

impl std::str::FromStr for Overlays {
    type Err = &'static str;

    /// A list of names with commas.
    fn from_str(text: &str) -> Result<Overlays, &'static str> {
        let mut overlays = Overlays { fastdp: false, warp: false, sleeve: false };
        for name in text.split(',') {
            match name.trim() {
                "fastdp" => overlays.fastdp = true,
                "warp" => overlays.warp = true,
                "sleeve" => overlays.sleeve = true,
                _ => return Err("only fastdp, warp and sleeve can be named, with commas between them"),
            }
        }
        if !overlays.warp && !overlays.sleeve {
            return Err("fastdp needs warp or sleeve beside it, for frames that the kernel cannot relay");
        }
        Ok(overlays)
    }
}
