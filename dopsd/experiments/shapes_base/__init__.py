"""How the shipped base is trained: ``vae``, then ``base``, then ``turbo``, each resumable."""
