"""The typed contract: .proto files and the modules generated of them (`make protos`)."""
