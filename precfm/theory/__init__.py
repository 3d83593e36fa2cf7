"""The paper's theory: closed forms, measurements that share no code with them, experiments, figures."""
