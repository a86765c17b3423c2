//! oci-fetch
