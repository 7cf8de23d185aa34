"""Ray: launch, coordinator, admission, inference workers, weights and the DeepSpeed learner."""
