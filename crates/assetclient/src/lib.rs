//! assetclient
